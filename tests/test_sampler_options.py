"""The options of a chain: what does not fit together is refused with what was expected."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastddpm import GaussianDiffusion, NoiseSchedule, Sampler
from fastddpm.sampler import Measured

SHAPE = (3, 8, 8)
SCHEDULE = NoiseSchedule.linear(8, 0.02, 0.4)
DIFFUSION = GaussianDiffusion(SCHEDULE)
MEASURED = Measured(
    SCHEDULE.timesteps, torch.linspace(0.5, 0.95, 8).double(), torch.full((8,), 0.01).double(), 1
)


def darker(x_0: Tensor) -> Tensor:
    return 0.8 * x_0 - 0.1


def rowwise(x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
    return 0.3 * x + t.reshape(-1, 1, 1, 1) * 1e-2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "euler"}, "method is one of ancestral, ddim, dpm-solver"),
        ({"eta": 0.5}, "eta is a number in .0, 1. for method 'ddim'"),
        ({"method": "ddim", "eta": 1.5}, "eta is a number in"),
        ({"method": "dpm-solver++", "variance": MEASURED}, "one of ancestral and ddim"),
        ({"corrections": 2}, "of method 'langevin'; got 2 for 'ancestral'"),
        ({"method": "langevin", "corrections": -1}, "corrections are 0 or more"),
        ({"method": "langevin", "corrections": 1.0}, "corrections must be an integer, got 1.0"),
        ({"method": "ddim", "step_size": 0.5}, "of method 'langevin'; got 0.5 for 'ddim'"),
        ({"method": "langevin", "step_size": 1.5}, "above 0 and at most 1"),
        ({"method": "langevin", "step_size": 0}, "above 0 and at most 1"),
        ({"method": "langevin", "variance": MEASURED}, "one of ancestral and ddim"),
        ({"steps": 9}, "between 1 and T = 8"),
        ({"steps": [3, 3]}, "list of different timesteps"),
        ({"steps": [8]}, "list of different timesteps"),
        ({"steps": "ddim7"}, "integer stride"),
        ({"spacing": "quad"}, "give steps="),
        ({"clip": -1.0}, "clip is a number above 0"),
        ({"clip": "imagen"}, "clip is a number above 0"),
        ({"clip": True}, "clip is a number above 0.* got True"),
        ({"clip": torch.tensor(1.0)}, "clip is a number above 0.* got tensor"),
        ({"clip": darker}, "clip is a number above 0.* got <function darker"),
        ({"steps": True}, "expected how many timesteps.* got True"),
        ({"method": "ddim", "eta": "1"}, "eta must be a number, got '1'"),
        ({"variance": "fixed_large"}, "Sampler.measure returned, got 'fixed_large'"),
        ({"on_x_0": 3}, "hashable function of x_0, got 3"),
        ({"on_x_0": []}, r"hashable function of x_0, got \[\]"),
        ({"guidance": "2", "labels": 1, "null_label": 0}, "guidance must be a number, got '2'"),
        ({"guidance": 2.0}, "needs labels="),
        ({"guidance": 2.0, "labels": 1}, "give null_label="),
        ({"null_label": 2}, "for guidance="),
        ({"network_at": "next"}, "for method 'ddim-inverse'"),
        ({"method": "ddim-inverse", "network_at": "later"}, "one of next, current"),
        ({"method": "ddim-inverse", "clip": 1.0}, "without a bound"),
        ({"method": "ddim-inverse", "clip": "dynamic"}, "without a bound"),
        ({"method": "ddim-inverse", "on_x_0": darker}, "without a bound"),
        ({"x_T": torch.zeros(3, *SHAPE)}, "x_T are 3, the samples asked for 2"),
        ({"x_T": torch.zeros(2, 3, 4, 4)}, "a batch of the sample's shape"),
        ({"on_x_0": lambda x: x[:1]}, "must return a tensor of the shape"),
    ],
)
def test_arguments_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    sampler = Sampler(rowwise, DIFFUSION, "reference", shape=SHAPE)
    with pytest.raises(ValueError, match=message):
        sampler.sample(2, **options)


def test_numbers_of_any_library_are_numbers() -> None:
    sampler = Sampler(rowwise, DIFFUSION, "reference", shape=SHAPE)
    for options in ({"clip": 1.0}, {"method": "ddim", "eta": 1.0}, {"steps": 4}):
        others = {k: np.array([v])[0] if k != "method" else v for k, v in options.items()}
        assert torch.equal(sampler.sample(2, **others), sampler.sample(2, **options))


def test_inversion_at_the_current_timestep_takes_a_bound() -> None:
    sampler = Sampler(rowwise, DIFFUSION, "reference", shape=SHAPE)
    images = 3 * torch.rand(2, *SHAPE)
    plain = sampler.invert(images, network_at="current")
    for options in ({"clip": 1.0}, {"clip": "dynamic"}, {"on_x_0": darker}):
        found = sampler.invert(images, network_at="current", **options)
        assert found.isfinite().all() and not torch.allclose(found, plain, atol=0.01)
    assert torch.equal(sampler.invert(images), sampler.invert(images, method="ddim-inverse"))
    with pytest.raises(ValueError, match="invert runs method 'ddim-inverse', not 'ancestral'"):
        sampler.invert(images, method="ancestral")


def test_a_misspelt_option_is_an_error() -> None:
    sampler = Sampler(rowwise, DIFFUSION, "reference", shape=SHAPE)
    with pytest.raises(TypeError, match="'spaceing'"):
        sampler.sample(2, steps=4, spaceing="quad")
