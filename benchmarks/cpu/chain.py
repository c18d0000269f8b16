"""A step of the ancestral chain, which is what a user waits for: network, noise and update.

    x_T;  for each of ``steps`` timesteps:  x <- step(network(x, t), t, x)

    ours       our sampler, whose step is one program
    cheapest   a rival's network in the least that plain torch needs around it
    diffusers  a rival's network in diffusers' loop, as its DDPMPipeline has it

Each chain is a worker (turns.py). A turn has one step more, the first, which is not timed: what is
done once a chain (our sampler reads all weights again, 60 ms for 143 MB) and what the contender
before has left in the caches is nothing of a thousand steps, and a tenth of a few.
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

# Called after a step, at least after the first and the last.
Mark = Callable[[], None]
Draw = Callable[[Mark], Tensor]


def measured(
    setup: Setup,
    contenders: Iterable[Contender],
    steps: int,
    rounds: int,
    clock: str,
    steady: Callable[[], bool],
) -> dict[str, Any]:
    """Milliseconds a step, of ``steps``, of each contender's cheapest chain, by library; see
    ``figures``. Raises Ended if ours has not all of its rounds."""
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
    """Of milliseconds of ``steps`` steps: a step's, and how many times faster each of ours is than
    each rival's."""
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
    """For a worker: turns in milliseconds of ``steps`` steps. loop: of LOOPS, for a rival."""
    own, one, seconds = (
        Setup.from_json(setup),
        Contender.from_json(contender),
        timing.SECONDS[clock],
    )
    torch.set_num_threads(own.threads)
    if one.is_ours:
        draw = ours(own, 1 + steps, **one.options)
    else:
        draw = LOOPS[loop](own, one.call(own), 1 + steps)

    def turn() -> float:
        marks: list[float] = []
        draw(lambda: marks.append(seconds()))
        return 1e3 * (marks[-1] - marks[0])

    return None, turn


def ours(setup: Setup, steps: int, **options: Any) -> Draw:
    """Our sampler: network, noise and step in one program, for all images at once, where
    ``Sampler.sample`` runs at most 32768 pixels at once."""
    unet, respaced = _respaced(setup, steps)
    sampler = fastddpm.Sampler(unet, respaced, "cpu", threads=setup.threads, **options)

    def draw(mark: Mark) -> Tensor:
        # Stops after the first step and the last.
        image = torch.empty(0)
        for state in sampler.stream(setup.batch, seed=0, every=steps - 1):
            mark()
            image = state.x_t
        return image

    return draw


def cheapest(setup: Setup, call: Call, steps: int) -> Draw:
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
    def draw(mark: Mark) -> Tensor:
        x.normal_(generator=generator)
        for t, row in falling:
            output = torch.as_tensor(call(x, t)).reshape(shape)
            torch.mul(x, row["x0_from_x"], out=x_0)
            x_0.add_(output, alpha=row["x0_from_output"]).clamp_(-bound, bound)
            x.mul_(row["mean_from_x"]).add_(x_0, alpha=row["mean_from_x0"])
            if row["sigma"]:
                x.add_(noise.normal_(generator=generator), alpha=row["sigma"])
            mark()
        return x

    return draw


def with_diffusers(setup: Setup, call: Call, steps: int) -> Draw:
    """diffusers' loop with ``call`` for its network."""
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler.from_pretrained(setup.folder)
    scheduler.set_timesteps(steps)
    shape = _shape(setup, fastddpm.from_pretrained(setup.folder)[0])
    generator = torch.Generator().manual_seed(0)

    @torch.no_grad()
    def draw(mark: Mark) -> Tensor:
        image = torch.randn(shape, generator=generator)
        for t in scheduler.timesteps:
            output = torch.as_tensor(call(image, t.expand(setup.batch).contiguous()))
            output = output.reshape(shape)
            image = scheduler.step(output, t, image, generator=generator).prev_sample
            mark()
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
