"""Copies and pickles of samplers: the same settings and images, with a model and captures of their
own. And copies of what fastddpm.accelerate made, which pipelines hold."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from op_backends import CPU, LIBRARY
from torch import Tensor
from unet_networks import network

import fastddpm
from fastddpm import GaussianDiffusion, NoiseSchedule, Sampler, UNet

DIFFUSION = GaussianDiffusion(NoiseSchedule.linear(6))
ENGINES = ["reference", CPU]
COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
}


def drawn() -> UNet:
    return network(in_channels=1, out_channels=1)


def by_rows(x: Tensor, t: Tensor) -> Tensor:
    return x * 0.5


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_used_sampler(engine: str, how: str) -> None:
    sampler = Sampler(drawn(), DIFFUSION, engine)
    images = sampler.sample(2, seed=3)
    sampler.sample(2, seed=3, steps=3, method="ddim")
    other = COPIES[how](sampler)
    # Its own chain, not yet prepared: none of the captures went with it.
    assert len(other._runs.chains) == 1 and not len(other._chain._kept)
    assert torch.equal(other.sample(2, seed=3), images)
    with torch.no_grad():
        other.model.conv_out.weight.mul_(2)
    assert not torch.equal(other.sample(2, seed=3), images)
    assert torch.equal(sampler.sample(2, seed=3), images)


@pytest.mark.parametrize("how", COPIES)
def test_its_settings(how: str) -> None:
    settings: dict[str, Any] = {"batch_size": 3, "tf32": True, "memory": "speed", "threads": 1}
    if LIBRARY.handle is None:
        settings = {"batch_size": 3, "tf32": True}
    sampler = Sampler(drawn(), DIFFUSION, "auto", "cpu", shape=[1, 16, 8], **settings)
    other = COPIES[how](sampler)
    assert other.explain() == sampler.explain()
    assert (other.shape, other.batch_size, other.device) == ((1, 16, 8), 3, torch.device("cpu"))
    assert other._settings == sampler._settings
    half = COPIES[how](Sampler(by_rows, DIFFUSION, dtype=torch.bfloat16, shape=(1, 4, 4)))
    assert half.dtype == torch.bfloat16 and half.model is by_rows
    assert half.sample(1).shape == (1, 1, 4, 4)


def test_a_shallow_copy_has_the_same_model() -> None:
    sampler = Sampler(drawn(), DIFFUSION, "reference")
    other = copy.copy(sampler)
    assert other.model is sampler.model and other._runs is not sampler._runs


def test_a_copy_of_an_accelerated_pipeline() -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        **{"sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1},
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()
    pipeline = fastddpm.accelerate(diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler(10)))
    pipeline.set_progress_bar_config(disable=True)

    def drawn_by(other: Any) -> Any:
        generator = torch.Generator().manual_seed(0)
        return other(num_inference_steps=3, generator=generator, output_type="np").images

    images = drawn_by(pipeline)
    other = copy.deepcopy(pipeline)
    assert (drawn_by(other) == images).all()
    with torch.no_grad():
        other.unet.source.conv_out.bias.add_(1.0)
    assert not (drawn_by(other) == images).all()
    assert (drawn_by(pipeline) == images).all()
    x = torch.randn(1, 1, 8, 8)
    fast = fastddpm.accelerate(unet)
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(fast)(x, 3).sample, fast(x, 3).sample)
