"""A scheduler's step beside diffusers' own, 16 images of 3x32x32 in float32.

Run: pytest benchmarks/test_scheduler_step.py --benchmark-enable --benchmark-group-by=param:name
Or:  python -m benchmarks.test_scheduler_step [ROUNDS], the two in turns: microseconds and ratio.
A timestep is an element of the scheduler's own, as in a pipeline's loop. Nothing is timed before
both have given the same samples. "noise" is torch's own draw, which both share: what is left of a
step when nothing else takes time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import timing
from fastddpm.integrations.diffusers import SCHEDULERS, FastDDIMScheduler, FastDDPMScheduler

SHAPE = (16, 3, 32, 32)
# Name: class, config, arguments of step.
STEPS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "ddpm": (FastDDPMScheduler, {}, {}),
    "ddpm_last": (FastDDPMScheduler, {}, {}),
    "ddpm_learned_range": (FastDDPMScheduler, {"variance_type": "learned_range"}, {}),
    "ddpm_thresholding": (FastDDPMScheduler, {"thresholding": True}, {}),
    "ddim": (FastDDIMScheduler, {}, {}),
    "ddim_eta": (FastDDIMScheduler, {}, {"eta": 1.0}),
}
Step = Callable[[], Any]


def steps(name: str) -> dict[str, Step]:
    """The same step of both libraries."""
    import diffusers

    fast, config, call = STEPS[name]
    theirs = getattr(diffusers, {v: k for k, v in SCHEDULERS.items()}[fast.__name__])
    channels = 6 if "learned" in name else 3
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SHAPE, generator=generator)
    output = torch.randn(SHAPE[0], channels, *SHAPE[2:], generator=generator)
    own = {"fastddpm": fast(**config), "diffusers": theirs(**config)}
    return {library: _step(own[library], name, x, output, call) for library in own}


def _step(scheduler: Any, name: str, x: Tensor, output: Tensor, call: dict[str, Any]) -> Step:
    scheduler.set_timesteps(50)
    t = list(scheduler.timesteps)[-1 if name.endswith("last") else 20]
    generator = torch.Generator().manual_seed(1)
    return lambda: scheduler.step(output, t, x, generator=generator, **call)


def noise() -> Step:
    """What both draw."""
    generator = torch.Generator().manual_seed(1)
    return lambda: torch.randn(SHAPE, generator=generator)


def check(both: dict[str, Step]) -> None:
    """AssertionError unless the two give the same sample, to the rounding of float32."""
    a, b = (step().prev_sample for step in both.values())
    assert (a - b).abs().max() < 1e-5 * b.abs().max()


@pytest.mark.parametrize("library", ["fastddpm", "diffusers"])
@pytest.mark.parametrize("name", STEPS)
@torch.inference_mode()
def test_step(name: str, library: str, benchmark: Any) -> None:
    both = steps(name)
    check(both)
    benchmark(both[library])
    benchmark.extra_info |= {"threads": torch.get_num_threads(), "shape": SHAPE}


@torch.inference_mode()
def main(rounds: int = 15) -> None:
    """The medians in microseconds of processor time, and the median of the rounds' ratios."""
    for name in STEPS:
        both = steps(name)
        check(both)
        taken = timing.interleaved(
            {**both, "noise": noise()}, rounds, timing.processor_milliseconds
        )
        ratio = timing.ratio(taken["fastddpm"], taken["diffusers"])
        medians = {k: round(1e3 * timing.summary(v)["median"]) for k, v in taken.items()}
        spread = f"{ratio['low']:.2f} to {ratio['high']:.2f}"
        print(f"{name:20}{medians}  ratio {ratio['median']:.2f} ({spread})", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
