"""What torch-fidelity is given, and its own code on small features beside ours."""

from __future__ import annotations

import pickle
import subprocess
import sys
import types
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastddpm.evaluation import fidelity, inception_metrics
from fastddpm.evaluation.fidelity import Pictures


def pictures(count: int, channels: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(256, (count, channels, 6, 5), generator=generator, dtype=torch.uint8)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments of every call of torch-fidelity, which answers with one figure."""
    seen: list[dict[str, Any]] = []

    def calculate_metrics(**given: Any) -> dict[str, float]:
        seen.append(given)
        return {"frechet_inception_distance": 1.5}

    module = types.ModuleType("torch_fidelity")
    module.calculate_metrics = calculate_metrics  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_fidelity", module)
    return seen


def test_it_is_given_rgb_bytes(calls: list[dict[str, Any]], tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    torch.save({"weight": torch.zeros(2)}, weights)
    samples, data = pictures(7), pictures(9, 3)
    found = inception_metrics(samples, data, weights=weights, batch_size=4)
    assert found == {"frechet_inception_distance": 1.5}
    (given,) = calls
    first, second = given.pop("input1"), given.pop("input2")
    assert (len(first), len(second)) == (7, 9)
    assert torch.equal(first[3], samples[3].repeat(3, 1, 1)) and first[3].dtype == torch.uint8
    assert torch.equal(second[8], data[8])
    assert given == {
        **{"fid": True, "isc": True, "kid": True, "kid_subset_size": 7, "batch_size": 4},
        **{"cuda": False, "save_cpu_ram": True, "cache": False, "verbose": False},
        "feature_extractor": "inception-v3-compat",
        "feature_extractor_weights_path": str(weights),
    }


def test_weights_that_are_not_there(
    calls: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ValueError, match=r"not at .*checkpoints.*: download https://.*--weights"):
        inception_metrics(pictures(3), pictures(3))
    kept = tmp_path / "checkpoints" / fidelity.WEIGHTS
    kept.parent.mkdir()
    torch.save({"weight": torch.zeros(2)}, kept)
    inception_metrics(pictures(3), pictures(3))
    assert calls[0]["feature_extractor_weights_path"] == str(kept)


def test_weights_that_would_run_code_are_refused(calls: list[Any], tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps(print, protocol=2))
    with pytest.raises(ValueError, match="not a file of weights alone"):
        inception_metrics(pictures(3), pictures(3), weights=path)
    assert not calls


def test_a_torchvision_that_does_not_fit_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(
        ImportError, match=r"torchvision that goes with torch .*pip install torch-fid"
    ):
        inception_metrics(pictures(3), pictures(3))


@pytest.mark.parametrize(
    "images", [torch.zeros(3, 4, 6, 5, dtype=torch.uint8), torch.zeros(3, 1, 6, 5)]
)
def test_what_is_no_picture(images: Tensor) -> None:
    with pytest.raises(ValueError, match="Inception takes pictures"):
        Pictures(images)


# torch-fidelity as it is, with as much of torchvision as its import asks for.
REAL = """
import sys, types
import torch

def module(name, **members):
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(members)
    return sys.modules[name]

module("torchvision.transforms.functional", pil_to_tensor=None)
functional = sys.modules["torchvision.transforms.functional"]
module("torchvision.transforms", functional=functional, Compose=None)
module("torchvision.datasets", CIFAR10=object, CIFAR100=object, STL10=object)
module("torchvision", transforms=sys.modules["torchvision.transforms"], datasets=None, models=None)
import torch_fidelity

class Corners(torch_fidelity.FeatureExtractorBase):
    def __init__(self, name, features_list, **kwargs):
        super().__init__(name, features_list)

    @staticmethod
    def get_provided_features_list():
        return ("pixels", "logits")

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "logits" if metric == "isc" else "pixels"

    def forward(self, images):
        assert images.dtype == torch.uint8 and images.shape[1:] == (3, 6, 5)
        pixels = images[:, 0, :2, :2].flatten(1).double() / 255
        named = {"pixels": pixels, "logits": pixels}
        return tuple(named[name] for name in self.features_list)

torch_fidelity.register_feature_extractor("corners", Corners)
from fastddpm.evaluation import (
    FeatureStatistics, frechet_distance, inception_metrics, kernel_distance
)
images = torch.randint(256, (2, 40, 1, 6, 5), dtype=torch.uint8)
images[1] //= 2
found = inception_metrics(*images, extractor="corners", batch_size=7)
a, b = (x[:, 0, :2, :2].flatten(1).double() / 255 for x in images)
own = frechet_distance(*map(FeatureStatistics.of, (a, b)))
assert abs(found["frechet_inception_distance"] / own - 1) < 1e-6, (found, own)
kid = kernel_distance(a, b).mean
assert abs(found["kernel_inception_distance_mean"] / kid - 1) < 1e-6, (found, kid)
assert found["inception_score_mean"] >= 1
"""


@pytest.mark.skipif(find_spec("torch_fidelity") is None, reason="torch-fidelity is not installed")
def test_its_own_figures_are_ours_on_the_same_features() -> None:
    run = [sys.executable, "-c", REAL]
    result = subprocess.run(run, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
