"""The model that a command works with, from its options, and its identity."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, TypeAlias

import torch
import typer
from torch import nn

from fastddpm import timesteps
from fastddpm.checkpoint import from_pretrained
from fastddpm.checkpoint.digest import diffusion_digest, weights_digest
from fastddpm.diffusion import GaussianDiffusion
from fastddpm.engine import CpuOptions
from fastddpm.sampler import Sampler
from fastddpm.sampler.images import PNG_CHANNELS
from fastddpm.sampler.model import device_of
from fastddpm.unet import UNet

MODEL_HELP = "A built-in name, a diffusers folder, or a checkpoint of another family."
DTYPES = ("float32", "bfloat16", "float16")

# Options that several commands have.
Model: TypeAlias = Annotated[str, typer.Option("--model", "-m", help=MODEL_HELP)]
Engine: TypeAlias = Annotated[
    str,
    typer.Option(
        help="auto, reference, compile, cuda_graph or cpu; one asked for is used or refused."
    ),
]
Device: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Where to run: cpu, cuda, cuda:1, ...; by default a GPU if torch sees one."),
]
Dtype: TypeAlias = Annotated[
    str, typer.Option(help="What the network computes in: float32, bfloat16 or float16.")
]
Threads: TypeAlias = Annotated[
    int | None, typer.Option(min=1, help="Of engine cpu; by default as many as torch uses.")
]
Weights: TypeAlias = Annotated[
    str,
    typer.Option(
        help="Of engine cpu: float32, or float16 for half the bytes; an error of about 2e-3."
    ),
]
Memory: TypeAlias = Annotated[
    str,
    typer.Option(
        help="Of engine cpu: small, or speed, whose 3x3 weights take four times as many bytes."
    ),
]
Seed: TypeAlias = Annotated[
    int,
    typer.Option(min=0, max=2**64 - 1, help="Seed of all noise; image i depends on it and i."),
]


def load_sampler(
    model: str,
    steps: str | None,
    spacing: str,
    engine: str,
    device: str | None,
    dtype: str,
    cpu: CpuOptions,
) -> tuple[Sampler, UNet]:
    """The sampler over the model's (respaced) chain, and the network itself. cpu: of engine "cpu";
    ValueError if they were chosen and another one runs."""
    unet, diffusion, place = load(model, steps, spacing, device, dtype)
    own = dataclasses.asdict(cpu)
    return Sampler(unet, diffusion, engine, place, getattr(torch, dtype), **own), unet


def load(
    model: str, steps: str | None, spacing: str, device: str | None, dtype: str
) -> tuple[UNet, GaussianDiffusion, torch.device]:
    """The network, its (respaced) diffusion and where to run; dtype is checked by the way."""
    if dtype not in DTYPES:
        raise ValueError(f"--dtype is one of {', '.join(DTYPES)}; got {dtype!r}")
    unet, diffusion = from_pretrained(model)
    place = place_of(device)
    if place.type == "cpu" and unet.config.dims == 2:
        # Eager convolutions of a CPU run 1.2 to 1.7 times faster so. The network is ours alone,
        # loaded a line above, so no caller's layout changes.
        # torch's stubs lack the argument.
        unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return unet, respaced(diffusion, steps, spacing), place


def place_of(device: str | None) -> torch.device:
    """The device asked for, by default a GPU if torch sees one; ValueError for one that is not
    there."""
    # One is always named, so no model is asked for its own.
    return device_of(nn.Module(), device or ("cuda" if torch.cuda.is_available() else "cpu"))


def respaced(diffusion: GaussianDiffusion, steps: str | None, spacing: str) -> GaussianDiffusion:
    """The diffusion over so many of its timesteps, or OpenAI's sections of them; None keeps all."""
    if steps is None:
        return diffusion
    # A negative number is a mistake of that kind, not sections.
    count = int(steps) if steps.removeprefix("-").isdecimal() else steps
    kept = timesteps.chosen(diffusion.num_steps, count, spacing)
    # The positions in the model's own chain, which may be respaced itself.
    return diffusion.respace(diffusion.schedule.timesteps[kept])


def makes_pictures(shape: tuple[int, ...]) -> bool:
    """Whether samples of this shape can be written as PNG."""
    return len(shape) == 3 and shape[0] in PNG_CHANNELS


def identity(
    name: str, unet: UNet, diffusion: GaussianDiffusion, dtype: str, weights: str
) -> dict[str, Any]:
    """What settings files hold about the model and how it computes: enough never to take one for
    another."""
    return {
        "model": name,
        "weights_sha256": weights_digest(unet),
        "diffusion": repr(diffusion),
        "diffusion_sha256": diffusion_digest(diffusion),
        "dtype": dtype,
        "weights": weights,
    }
