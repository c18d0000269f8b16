"""Whole chains: our sampler, and diffusers' loop around the best rival's network.

    x_T;  for each of ``steps`` timesteps:  x <- step(network(x, t), t, x)

The rival's step is diffusers' DDPMScheduler, as its DDPMPipeline calls it. Each chain is a worker
(turns.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

import fastddpm
from benchmarks import timing
from benchmarks.cpu.contenders import OURS, Call, Contender, Setup
from benchmarks.turns import interleaved, worker
from benchmarks.worker import Prepared
from fastddpm import timesteps


def measured(
    setup: Setup,
    contenders: list[Contender],
    steps: int,
    rounds: int,
    clock: str,
    steady: Callable[[], bool],
) -> dict[str, Any]:
    """Milliseconds a step of each contender's chain, by library; see ``figures``."""
    with ExitStack() as running:
        workers = {}
        for one in contenders:
            arguments: dict[str, Any] = {"setup": setup.as_json(), "contender": one.as_json()}
            process = worker(prepared, path=one.path, **arguments, steps=steps, clock=clock)
            workers[one.name] = running.enter_context(process)
        times, ended, disturbed = interleaved(workers, rounds, steady)
    return figures(times, steps) | {"absent": ended, "disturbed_turns": disturbed}


def figures(times: Mapping[str, list[float]], steps: int) -> dict[str, Any]:
    """Of milliseconds a chain: a step's, and how many times faster ours is than each rival's."""
    step_ms = {name: [time / steps for time in samples] for name, samples in times.items()}
    return {
        "steps": steps,
        "step_ms": {name: timing.summary(samples) for name, samples in step_ms.items()},
        "times_faster_than": {
            name: timing.ratio(step_ms[OURS], samples)
            for name, samples in step_ms.items()
            if name != OURS
        },
    }


def prepared(setup: dict[str, Any], contender: dict[str, Any], steps: int, clock: str) -> Prepared:
    """For a worker: turns in milliseconds a chain."""
    own, one, timer = Setup.from_json(setup), Contender.from_json(contender), timing.CLOCKS[clock]
    torch.set_num_threads(own.threads)
    if one.is_ours:
        draw = ours(own, steps, **one.options)
    else:
        draw = with_diffusers(own, one.call(own), steps)
    return None, lambda: timer(draw)


def ours(setup: Setup, steps: int, **options: Any) -> Callable[[], Tensor]:
    """Our sampler: network, noise and step in one program."""
    unet, diffusion = fastddpm.from_pretrained(setup.folder)
    respaced = diffusion.respace(timesteps.linspace(diffusion.num_steps, steps))
    sampler = fastddpm.Sampler(unet, respaced, "cpu", threads=setup.threads, **options)
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
