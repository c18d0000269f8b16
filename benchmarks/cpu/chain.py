"""Whole chains: our sampler, and diffusers' loop around the best rival's network.

    x_T;  for each of ``steps`` timesteps:  x <- step(network(x, t), t, x)

The rival's step is diffusers' DDPMScheduler, as its DDPMPipeline calls it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fastddpm
from benchmarks import timing
from benchmarks.cpu.contenders import OURS, Call, Setup
from fastddpm import timesteps


def measured(
    setup: Setup,
    rivals: dict[str, Call],
    steps: int,
    rounds: int,
    timer: timing.Timer = timing.wall_milliseconds,
) -> dict[str, Any]:
    """Milliseconds a step of each, and how many times faster ours is than each."""
    draws: dict[str, Callable[[], Tensor]] = {OURS: ours(setup, steps)}
    draws |= {name: with_diffusers(setup, call, steps) for name, call in rivals.items()}
    times = timing.interleaved(draws, rounds, timer)
    step_ms = {name: [time / steps for time in samples] for name, samples in times.items()}
    return {
        "steps": steps,
        "step_ms": {name: timing.summary(samples) for name, samples in step_ms.items()},
        "times_faster_than": {name: timing.ratio(step_ms[OURS], step_ms[name]) for name in rivals},
    }


def ours(setup: Setup, steps: int) -> Callable[[], Tensor]:
    """Our sampler: network, noise and step in one program."""
    unet, diffusion = fastddpm.from_pretrained(setup.folder)
    respaced = diffusion.respace(timesteps.linspace(diffusion.num_steps, steps))
    sampler = fastddpm.Sampler(unet, respaced, "cpu", threads=setup.threads)
    return lambda: sampler.sample(setup.batch, seed=0)


def with_diffusers(setup: Setup, call: Call, steps: int) -> Callable[[], Tensor]:
    """diffusers' loop with ``call`` for its network."""
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler.from_pretrained(setup.folder)
    scheduler.set_timesteps(steps)
    config = fastddpm.from_pretrained(setup.folder)[0].config
    assert config.size is not None
    shape = (setup.batch, config.in_channels, *config.size)
    generator = torch.Generator().manual_seed(0)

    @torch.no_grad()
    def draw() -> Tensor:
        image = torch.randn(shape, generator=generator)
        for t in scheduler.timesteps:
            output = torch.as_tensor(call(image, t.expand(setup.batch).contiguous()))
            output = output.reshape(shape)
            image = scheduler.step(output, t, image, generator=generator).prev_sample
        return image

    return draw
