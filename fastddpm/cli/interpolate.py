"""``fastddpm interpolate``: images between two images (Ho et al. 2020, figures 8 and 9)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer
from torch import Tensor

from fastddpm.cli import grid
from fastddpm.cli import model as models
from fastddpm.cli.progress import Bar
from fastddpm.engine import CpuOptions
from fastddpm.sampler import Sampler, from_uint8, load_png

COMMAND = "fastddpm interpolate"

A: TypeAlias = Annotated[
    str, typer.Argument(help="A picture of the model's size, or a sample's index.")
]
B: TypeAlias = Annotated[str, typer.Argument(help="The other end: a picture or an index.")]
MixedAt: TypeAlias = Annotated[
    str,
    typer.Option(
        "--t",
        "-t",
        help="Step to mix at, 0 to T-1; larger varies more. Several as 250,500: a row each.",
    ),
]
Lambdas: TypeAlias = Annotated[
    str, typer.Option(help="Weights of B: a list as 0,0.5,1 or how many from 0 to 1.")
]
ResampleNoise: TypeAlias = Annotated[
    bool, typer.Option("--resample-noise", help="New noise for each weight.")
]
Label: TypeAlias = Annotated[
    int | None, typer.Option("--label", help="Class of all images, if the model has classes.")
]


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("interpolate")(interpolate)


def interpolate(
    a: A,
    b: B,
    model: models.Model = "mnist",
    t: MixedAt = "500",
    lambdas: Lambdas = "9",
    seed: models.Seed = 0,
    resample_noise: ResampleNoise = False,
    engine: models.Engine = "auto",
    device: models.Device = None,
    dtype: models.Dtype = "float32",
    threads: models.Threads = None,
    weights: models.Weights = "float32",
    memory: models.Memory = "small",
    label: Label = None,
    out: grid.Out = Path("interpolation.png"),
    overwrite: grid.Overwrite = False,
) -> None:
    """Encode two images to step t of the chain, mix them there and decode.

    Writes a row of images for each step, from A to B, and the settings beside it as OUT with the
    ending .json. All rows run as one batch.
    """
    grid.check_out(out, overwrite)
    shares = _parse_weights(lambdas)
    cpu = CpuOptions(threads, weights, memory)
    sampler, unet = models.load_sampler(model, None, "linspace", engine, device, dtype, cpu)
    grid.check_model(sampler)
    levels = grid.steps_of(t, sampler)
    with grid.unwritten():
        images = _mixed(sampler, (a, b), levels, shares, seed, resample_noise, label)
    settings = {
        "command": COMMAND,
        **models.identity(model, unet, sampler.diffusion, dtype, weights),
        **{"a": a, "b": b, "t": levels if len(levels) > 1 else levels[0], "lambdas": shares},
        **{"seed": seed, "resample_noise": resample_noise, "label": label},
    }
    grid.write(out, images, settings)
    typer.echo(f"{len(levels) * len(shares)} images from {a} to {b} in {out}")


def _mixed(
    sampler: Sampler,
    ends: tuple[str, str],
    levels: list[int],
    weights: list[float],
    seed: int,
    resample_noise: bool,
    label: int | None,
) -> Tensor:
    """The decoded images, float32 [K, L, C, H, W]."""
    # First what can fail: a picture that is missing is told before an image is sampled.
    pictures = [None if _is_index(end) else _picture(sampler, end) for end in ends]
    a, b = (
        _sampled(sampler, int(end), seed, label) if picture is None else picture
        for end, picture in zip(ends, pictures, strict=True)
    )
    with Bar("interpolating", max(levels) + 1) as bar:
        return sampler.interpolate(
            a,
            b,
            levels,
            weights,
            seed,
            resample_noise=resample_noise,
            labels=label,
            progress=lambda _, __: bar.advance(),
        )


def _parse_weights(text: str) -> list[float]:
    try:
        if "," in text:
            return [float(word) for word in text.split(",")]
        count = int(text)
    except ValueError:
        count = 0
    if count < 2:
        raise ValueError(f"--lambdas expects weights as 0,0.5,1 or a count from 2; got {text!r}")
    return [k / (count - 1) for k in range(count)]


def _is_index(end: str) -> bool:
    """Whether it means a sample of the seed, and no picture."""
    return end.isascii() and end.isdecimal()


def _sampled(sampler: Sampler, index: int, seed: int, label: int | None) -> Tensor:
    with Bar(f"sampling image {index}", sampler.diffusion.num_steps) as bar:
        return sampler.sample(
            indices=[index], seed=seed, labels=label, progress=lambda _, __: bar.advance()
        )[0]


def _picture(sampler: Sampler, end: str) -> Tensor:
    """A picture as the model sees it, float32 [C, H, W]."""
    image = from_uint8(load_png(Path(end), sampler.shape[0])[None])[0]
    if tuple(image.shape) != sampler.shape:
        size = " x ".join(str(s) for s in reversed(sampler.shape[1:]))
        raise ValueError(
            f"{end} is {image.shape[2]} x {image.shape[1]} pixels, the model makes {size}"
        )
    return image
