"""The bound of images in bits per dimension: ours, and improved-diffusion's calc_bpd_loop.

Theirs takes one timestep after another, each for a whole batch of images, around a rival's network.
The chain is respaced to a few of its timesteps, which stand for all: every term costs one call of
the network. Each is a worker (turns.py).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fastddpm
from benchmarks import timing
from benchmarks.cpu.contenders import Call, Contender, Setup
from benchmarks.worker import Prepared
from fastddpm import UNet, timesteps
from fastddpm.evaluation import Bound

# Images whose bounds are compared before anything is timed.
CHECKED = 2


def prepared(
    setup: dict[str, Any], contender: dict[str, Any], images: int, steps: int, clock: str
) -> Prepared:
    """For a worker: bits per dimension of the first images, and turns in milliseconds for all.

    setup's batch: the images of one call of the loop, for a rival.
    """
    own, one, timer = Setup.from_json(setup), Contender.from_json(contender), timing.CLOCKS[clock]
    torch.set_num_threads(own.threads)
    bound = ours(own, steps, **one.options) if one.is_ours else theirs(own, one.call(own), steps)
    x_0 = _images(images, fastddpm.from_pretrained(own.folder)[0])
    torch.manual_seed(0)
    found = bound(x_0[:CHECKED], True).tolist()
    return found, lambda: timer(lambda: bound(x_0, False))


# Images [B, C, H, W], and whether to draw their noise from torch's generator -> bits [B]
Measured = Callable[[Tensor, bool], Tensor]


def ours(setup: Setup, steps: int, **options: Any) -> Measured:
    """Our bound on engine "cpu"."""
    unet, diffusion = fastddpm.from_pretrained(setup.folder)
    kept = diffusion.respace(timesteps.linspace(diffusion.num_steps, steps))
    bound = Bound(unet, kept, "cpu", threads=setup.threads, **options)

    def measured(x_0: Tensor, drawn: bool) -> Tensor:
        noise = (lambda t, shape: torch.randn(shape)) if drawn else None
        return bound(x_0, noise=noise).total

    return measured


def theirs(setup: Setup, call: Call, steps: int) -> Measured:
    """improved-diffusion's loop with ``call`` for the network, a batch of images at a time."""
    openai = importlib.import_module("improved_diffusion.gaussian_diffusion")
    spaced = importlib.import_module("improved_diffusion.respace").SpacedDiffusion
    _, diffusion = fastddpm.from_pretrained(setup.folder)
    kept = timesteps.linspace(diffusion.num_steps, steps).tolist()
    process = spaced(
        use_timesteps=kept,
        betas=diffusion.schedule.betas.numpy(),
        model_mean_type=openai.ModelMeanType.EPSILON,
        model_var_type=openai.ModelVarType[diffusion.variance.upper()],
        loss_type=openai.LossType.MSE,
    )
    assert diffusion.prediction == "epsilon" and diffusion.clip == 1

    def measured(x_0: Tensor, drawn: bool) -> Tensor:
        parts = [process.calc_bpd_loop(call, part) for part in torch.split(x_0, setup.batch)]
        return torch.cat([part["total_bpd"] for part in parts])

    return measured


def _images(count: int, unet: UNet) -> Tensor:
    """Levels of bytes in [-1, 1], [count, C, H, W]."""
    assert unet.config.size is not None
    shape = (count, unet.config.in_channels, *unet.config.size)
    levels = torch.randint(256, shape, generator=torch.Generator().manual_seed(0))
    return levels.float() / 127.5 - 1
