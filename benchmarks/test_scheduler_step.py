"""A scheduler's step beside diffusers' and OpenAI's own, 16 images of 3x32x32 in float32.

A timestep is an element of the scheduler's own, as in a pipeline's loop. Nothing is timed before
all have given the same samples of the same noise. "torch.randn" is the noise alone, which
diffusers' step draws: ours draws the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.conftest import Compare
from benchmarks.side_by_side import OURS, timed

diffusers = pytest.importorskip("diffusers")

from fastddpm.integrations.diffusers import (  # noqa: E402
    SCHEDULERS,
    FastDDIMScheduler,
    FastDDPMScheduler,
)

SHAPE = (16, 3, 32, 32)
SUBJECT = "Scheduler step"
# Name: class, config, arguments of step.
STEPS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "ddpm": (FastDDPMScheduler, {}, {}),
    # Of torch's own, which other threads might draw from: there are none.
    "ddpm_no_generator": (FastDDPMScheduler, {}, {"generator": None}),
    "ddpm_last": (FastDDPMScheduler, {}, {}),
    "ddpm_learned_range": (FastDDPMScheduler, {"variance_type": "learned_range"}, {}),
    "ddpm_thresholding": (FastDDPMScheduler, {"thresholding": True}, {}),
    "ddim": (FastDDIMScheduler, {}, {}),
    "ddim_eta": (FastDDIMScheduler, {}, {"eta": 1.0}),
}
# Of 1000.
TIMESTEP = 580
SEED = 1
Step = Callable[[], Tensor]


@pytest.mark.parametrize("name", STEPS)
@torch.inference_mode()
def test_step(name: str, compare: Compare) -> None:
    both = steps(name)
    check(both)
    compare(SUBJECT, name, {k: timed(step) for k, step in (both | noise()).items()}, batch=16)


@torch.inference_mode()
def test_openais_step(compare: Compare) -> None:
    """improved-diffusion's p_sample. It is on no package index: PYTHONPATH has to name a copy."""
    gaussian = pytest.importorskip("improved_diffusion.gaussian_diffusion")
    x, output = images()
    theirs = gaussian.GaussianDiffusion(
        betas=gaussian.get_named_beta_schedule("linear", 1000),
        model_mean_type=gaussian.ModelMeanType.EPSILON,
        model_var_type=gaussian.ModelVarType.FIXED_LARGE,
        loss_type=gaussian.LossType.MSE,
    )
    t = torch.full(SHAPE[:1], TIMESTEP)
    both: dict[str, Step] = {
        OURS: _step(FastDDPMScheduler(variance_type="fixed_large"), 1000, TIMESTEP, (x, output)),
        "improved-diffusion": lambda: theirs.p_sample(lambda x, t: output, x, t)["sample"],
    }
    check(both)
    compare(SUBJECT, "openai fixed_large", {k: timed(s) for k, s in both.items()}, batch=16)


def steps(name: str) -> dict[str, Step]:
    """The same step of both libraries."""
    fast, config, call = STEPS[name]
    theirs = getattr(diffusers, {v: k for k, v in SCHEDULERS.items()}[fast.__name__])
    both = images(6 if "learned" in name else 3)
    t = 0 if name.endswith("last") else TIMESTEP
    own = {OURS: fast(**config), "diffusers": theirs(**config)}
    return {library: _step(own[library], 50, t, both, **call) for library in own}


def images(channels: int = 3) -> tuple[Tensor, Tensor]:
    """x_t, and an output of so many channels."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SHAPE, generator=generator)
    return x, torch.randn(SHAPE[0], channels, *SHAPE[2:], generator=generator)


def _step(scheduler: Any, n: int, t: int, given: tuple[Tensor, Tensor], **call: Any) -> Step:
    """At t, of a chain of n steps."""
    scheduler.set_timesteps(n)
    x, output = given
    own_t = list(scheduler.timesteps)[scheduler.timesteps.tolist().index(t)]
    settings = {"generator": torch.Generator().manual_seed(SEED)} | call
    return lambda: scheduler.step(output, own_t, x, **settings).prev_sample


def noise() -> dict[str, Step]:
    """What diffusers draws."""
    generator = torch.Generator().manual_seed(SEED)
    return {"torch.randn": lambda: torch.randn(SHAPE, generator=generator)}


def check(both: dict[str, Step]) -> None:
    """AssertionError unless the two give the same sample, to the rounding of float32."""
    samples = []
    for step in both.values():
        # For a step that draws from torch's own generator.
        torch.manual_seed(SEED)
        samples.append(step())
    a, b = samples
    assert (a - b).abs().max() < 1e-5 * b.abs().max()
