"""``fastddpm interpolate``: images between two images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from torch import Tensor

from fastddpm.cli import model as models
from fastddpm.cli.progress import Bar
from fastddpm.cli.sample_folder import write_whole
from fastddpm.sampler import Sampler, from_uint8, image_grid, load_png, save_png, to_uint8


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("interpolate")(interpolate)


def interpolate(
    a: Annotated[str, typer.Argument(help="A picture of the model's size, or a sample's index.")],
    b: Annotated[str, typer.Argument(help="The other end: a picture or an index.")],
    model: Annotated[str, typer.Option("--model", "-m", help=models.MODEL_HELP)] = "mnist",
    t: Annotated[
        int, typer.Option("--t", "-t", min=0, help="Step to mix at, 0 to T-1; larger varies more.")
    ] = 500,
    lambdas: Annotated[
        str, typer.Option(help="Weights of B: a list as 0,0.5,1 or how many from 0 to 1.")
    ] = "9",
    seed: Annotated[int, typer.Option(min=0, max=2**64 - 1, help="Seed of all noise.")] = 0,
    resample_noise: Annotated[
        bool, typer.Option("--resample-noise", help="New noise for each weight.")
    ] = False,
    engine: Annotated[str, typer.Option(help=models.ENGINE_HELP)] = "auto",
    device: Annotated[str | None, typer.Option(help=models.DEVICE_HELP)] = None,
    dtype: Annotated[str, typer.Option(help=models.DTYPE_HELP)] = "float32",
    labels: Annotated[int | None, typer.Option("--label", help="Class, if the model has.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG to write.")] = Path(
        "interpolation.png"
    ),
    overwrite: Annotated[bool, typer.Option(help="Replace OUT.")] = False,
) -> None:
    """Encode two images to step t of the chain, mix them there and decode.

    Writes one row of images, from A to B, and the settings beside it as OUT with the ending .json.
    """
    if out.exists() and not overwrite:
        raise ValueError(f"{out} exists: choose another --out, or --overwrite")
    weights = _parse_weights(lambdas)
    sampler, unet = models.load_sampler(model, None, "linspace", engine, device, dtype)
    image_a, image_b = (_image(sampler, end, seed) for end in (a, b))
    with Bar("interpolating", t + 1) as bar:
        images = sampler.interpolate(
            image_a,
            image_b,
            t,
            weights,
            seed,
            resample_noise=resample_noise,
            labels=labels,
            progress=lambda _, __: bar.advance(),
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    save_png(out, image_grid(to_uint8(images), columns=len(weights)))
    settings = {
        "a": a,
        "b": b,
        "model": model,
        "weights_sha256": models.weights_digest(unet),
        "diffusion": repr(sampler.diffusion),
        "t": t,
        "lambdas": weights,
        "seed": seed,
        "resample_noise": resample_noise,
        "dtype": dtype,
        "label": labels,
    }
    text = json.dumps(settings, indent=2) + "\n"
    write_whole(out.with_suffix(".json"), lambda file: file.write(text.encode()))
    typer.echo(f"{len(weights)} images from {a} to {b} in {out}")


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


def _image(sampler: Sampler, end: str, seed: int) -> Tensor:
    """A picture as the model sees it, float32 [C, H, W]; digits mean a sample of the seed."""
    if end.isdigit():
        with Bar(f"sampling image {end}", sampler.diffusion.num_steps) as bar:
            return sampler.sample(
                indices=[int(end)], seed=seed, progress=lambda _, __: bar.advance()
            )[0]
    image = from_uint8(load_png(Path(end), sampler.shape[0])[None])[0]
    if tuple(image.shape) != sampler.shape:
        size = " x ".join(str(s) for s in reversed(sampler.shape[1:]))
        raise ValueError(
            f"{end} is {image.shape[2]} x {image.shape[1]} pixels, the model makes {size}"
        )
    return image
