"""A step of the ancestral chain, which is what a user waits for: network, noise and update.

    x_T;  for each of ``steps`` timesteps:  x <- step(network(x, t), t, x)

    ours       our sampler, whose step is one program
    cheapest   a rival's network in the least that plain torch needs around it
    diffusers  a rival's network in diffusers' loop, as its DDPMPipeline has it

Each chain is a worker (turns.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

import fastddpm
from benchmarks import timing
from benchmarks.cpu import measure
from benchmarks.cpu.contenders import Call, Contender, Setup
from benchmarks.turns import interleaved, worker
from benchmarks.worker import Prepared
from fastddpm import GaussianDiffusion, UNet, timesteps
from fastddpm.kernels.ancestral_step.reference import STEP_COLUMNS


def measured(
    setup: Setup,
    contenders: Iterable[Contender],
    steps: int,
    rounds: int,
    clock: str,
    steady: Callable[[], bool],
) -> dict[str, Any]:
    """Milliseconds a step of each contender's cheapest chain, by library; see ``figures``. Raises
    Ended if ours has not all of its rounds."""
    ours, settings = [], {}
    with ExitStack() as running:
        workers = {}
        for one in contenders:
            arguments: dict[str, Any] = {"setup": setup.as_json(), "contender": one.as_json()}
            process = worker(prepared, path=one.path, **arguments, steps=steps, clock=clock)
            workers[one.name] = running.enter_context(process)
            settings[one.name] = one.setting
            ours += [one.name] if one.is_ours else []
        times, ended, disturbed = interleaved(workers, rounds, steady)
    measure.require(ours, times, ended)
    found = {"settings": settings, "absent": ended, "disturbed_turns": disturbed}
    return figures(times, steps, ours) | found


def figures(times: Mapping[str, list[float]], steps: int, ours: Iterable[str]) -> dict[str, Any]:
    """Of milliseconds a chain: a step's, and how many times faster each of ours is than each
    rival's."""
    step_ms = {name: [time / steps for time in samples] for name, samples in times.items()}
    return {
        "steps": steps,
        "step_ms": {name: timing.summary(samples) for name, samples in step_ms.items()},
        **measure.compared(step_ms, ours),
    }


def prepared(
    setup: dict[str, Any],
    contender: dict[str, Any],
    steps: int,
    clock: str,
    loop: str = "cheapest",
) -> Prepared:
    """For a worker: turns in milliseconds a chain. loop: of LOOPS, for a rival."""
    own, one, timer = Setup.from_json(setup), Contender.from_json(contender), timing.CLOCKS[clock]
    torch.set_num_threads(own.threads)
    if one.is_ours:
        draw = ours(own, steps, **one.options)
    else:
        draw = LOOPS[loop](own, one.call(own), steps)
    return None, lambda: timer(draw)


def ours(setup: Setup, steps: int, **options: Any) -> Callable[[], Tensor]:
    """Our sampler: network, noise and step in one program."""
    unet, respaced = _respaced(setup, steps)
    sampler = fastddpm.Sampler(unet, respaced, "cpu", threads=setup.threads, **options)
    return lambda: sampler.sample(setup.batch, seed=0)


def cheapest(setup: Setup, call: Call, steps: int) -> Callable[[], Tensor]:
    """``call`` for the network, and each step in place: five passes, and torch's normal numbers,
    which it draws faster than NumPy. Every number that depends on the timestep alone is ready."""
    unet, diffusion = _respaced(setup, steps)
    shape = _shape(setup, unet)
    x, x_0, noise = (torch.empty(shape) for _ in range(3))
    bound = float("inf") if diffusion.clip is None else diffusion.clip
    rows = [dict(zip(STEP_COLUMNS, row, strict=True)) for row in diffusion.step_table().tolist()]
    times = diffusion.model_timesteps(torch.arange(steps)).expand(setup.batch, steps)
    falling = list(zip(times.T.contiguous(), rows, strict=True))[::-1]
    generator = torch.Generator().manual_seed(0)

    @torch.inference_mode()
    def draw() -> Tensor:
        x.normal_(generator=generator)
        for t, row in falling:
            output = torch.as_tensor(call(x, t)).reshape(shape)
            torch.mul(x, row["x0_from_x"], out=x_0)
            x_0.add_(output, alpha=row["x0_from_output"]).clamp_(-bound, bound)
            x.mul_(row["mean_from_x"]).add_(x_0, alpha=row["mean_from_x0"])
            if row["sigma"]:
                x.add_(noise.normal_(generator=generator), alpha=row["sigma"])
        return x

    return draw


def with_diffusers(setup: Setup, call: Call, steps: int) -> Callable[[], Tensor]:
    """diffusers' loop with ``call`` for its network."""
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler.from_pretrained(setup.folder)
    scheduler.set_timesteps(steps)
    shape = _shape(setup, fastddpm.from_pretrained(setup.folder)[0])
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


LOOPS = {"cheapest": cheapest, "diffusers": with_diffusers}


def _respaced(setup: Setup, steps: int) -> tuple[UNet, GaussianDiffusion]:
    """The network, and its diffusion in so many steps."""
    unet, diffusion = fastddpm.from_pretrained(setup.folder)
    return unet, diffusion.respace(timesteps.linspace(diffusion.num_steps, steps))


def _shape(setup: Setup, unet: UNet) -> tuple[int, ...]:
    assert unet.config.size is not None
    return setup.batch, unet.config.in_channels, *unet.config.size
