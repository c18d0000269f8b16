"""The features that are shipped, and how far they find digits from what is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import fastddpm
from fastddpm.evaluation import FeatureStatistics, MnistFeatures, frechet_distance
from fastddpm.evaluation.mnist_features import classifier, shipped
from fastddpm.sampler import from_uint8, to_uint8

ROOT = Path(__file__).parents[1]


def test_features_are_the_classifiers_last_hidden_layer() -> None:
    images = torch.rand(5, 1, 28, 28) * 2 - 1
    network, features = shipped(), MnistFeatures()
    hidden = features(images)
    assert hidden.shape == (5, features.dimensions) and hidden.dtype == torch.float32
    torch.testing.assert_close(network[-1](hidden), network(images))
    own = classifier()
    torch.testing.assert_close(own.eval()(images), own[-1](MnistFeatures(own)(images)))
    assert not torch.allclose(MnistFeatures(own)(images), hidden)
    with pytest.raises(ValueError, match=r"images \[1, 28, 28\], got \[3, 28, 28\]"):
        features(images.expand(5, 3, 28, 28))


def test_images_are_floats_of_their_range() -> None:
    features, images = MnistFeatures(), torch.ones(2, 1, 28, 28)
    for scale in (1, -1.0005):
        assert features(scale * images).isfinite().all()
    with pytest.raises(ValueError, match=r"floating-point images .*, got torch\.uint8"):
        features(images.to(torch.uint8))
    for value in (255, -1.1, torch.nan):
        with pytest.raises(ValueError, match=r"images must lie in \[-1, 1\] .*, got values up to"):
            features(value * images)


def test_the_file_is_what_its_record_says() -> None:
    record = json.loads((ROOT / "benchmarks/results/mnist_features.json").read_text())
    file = ROOT / "fastddpm/assets/mnist_features/model.safetensors"
    assert file.stat().st_size == record["bytes"] < 1_000_000
    assert record["test_accuracy_as_shipped"] >= 0.98


def test_samples_of_the_built_in_model_are_nearer_to_each_other_than_to_noise() -> None:
    """160 digits of seed 0 and 160 of seed 1, 10 steps each: no data needed."""
    sampler = fastddpm.Sampler(*fastddpm.from_pretrained("mnist"))
    features = MnistFeatures()

    def digits(seed: int) -> FeatureStatistics:
        x_0 = sampler.sample(160, seed, steps=10, method="ddim", batch_size=32)
        return FeatureStatistics.of(features(from_uint8(to_uint8(x_0))))

    one, other = digits(0), digits(1)
    generator = torch.Generator().manual_seed(0)
    noise = 2 * torch.rand(160, 1, 28, 28, generator=generator) - 1
    grey = torch.zeros(160, 1, 28, 28) + 0.01 * torch.randn(160, 1, 28, 28, generator=generator)
    near = frechet_distance(one, other)
    for other_images in (noise, grey):
        assert frechet_distance(one, FeatureStatistics.of(features(other_images))) > 5 * near
