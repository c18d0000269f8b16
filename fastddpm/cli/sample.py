"""``fastddpm sample``: images from a model, as a PNG grid and an .npz of bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import torch
import typer
from torch import Tensor

from fastddpm.cli import method as how
from fastddpm.cli import model as models
from fastddpm.cli.progress import Bar
from fastddpm.cli.sample_folder import GRID, IMAGES, RESULT, Images, SampleFolder
from fastddpm.engine import CpuOptions
from fastddpm.sampler import Options, Sampler, image_grid, save_png, to_uint8
from fastddpm.sampler.images import PIXELS, as_pixels

GRID_IMAGES = 100
FORMATS = ("npz", "png")

Num: TypeAlias = Annotated[int, typer.Option("--num", "-n", min=1, help="Images to make.")]
BatchSize: TypeAlias = Annotated[
    int, typer.Option(min=1, help="Images run at once; each batch is kept when done.")
]
Steps: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Reverse steps, 1 to T, all T by default; fewer are spread over the T of the model. "
        "Or OpenAI's sections: 10,15,20 or ddim50.",
    ),
]
Spacing: TypeAlias = Annotated[
    str, typer.Option(help="How fewer steps are spread: linspace, leading, trailing or quad.")
]
Labels: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Classes, as 0,1,2; image i gets the i-th, starting over at the end."),
]
Out: TypeAlias = Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")]
Format: TypeAlias = Annotated[
    str, typer.Option(help="npz, or png for one file an image in OUT/images besides.")
]
Pixels: TypeAlias = Annotated[
    str,
    typer.Option(
        help="What the .npz holds: bytes, by round or truncate (OpenAI's); or float, in [-1, 1]."
    ),
]
Overwrite: TypeAlias = Annotated[
    bool, typer.Option(help="Replace other samples of this command in OUT.")
]


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("sample")(sample)


def sample(
    model: models.Model = "mnist",
    num: Num = 16,
    seed: models.Seed = 0,
    batch_size: BatchSize = 64,
    steps: Steps = None,
    spacing: Spacing = "linspace",
    method: how.Method = "ancestral",
    eta: how.Eta = 0.0,
    corrections: how.Corrections = None,
    step_size: how.StepSize = None,
    clip: how.Clip = None,
    variance: how.Variance = None,
    guidance: how.Guidance = None,
    null_label: how.NullLabel = None,
    engine: models.Engine = "auto",
    device: models.Device = None,
    dtype: models.Dtype = "float32",
    threads: models.Threads = None,
    weights: models.Weights = "float32",
    memory: models.Memory = "small",
    labels: Labels = None,
    out: Out = Path("samples"),
    format: Format = "npz",
    pixels: Pixels = "round",
    overwrite: Overwrite = False,
) -> None:
    """Draw images by the whole reverse chain, or by fewer steps of any method.

    Writes OUT/samples.npz (array "samples", uint8 [N, H, W, C]; a byte is round((x+1)*127.5), see
    --pixels), OUT/samples.png (a grid of the first 100) and OUT/settings.json. Batches are kept as
    they finish: after Ctrl-C or a crash the same command goes on where it stopped. Samples that are
    no pictures, of one or three dimensions, are written as the array alone.
    """
    classes = _parse_labels(labels, num)
    cpu = CpuOptions(threads, weights, memory)
    sampler, unet = models.load_sampler(model, steps, spacing, engine, device, dtype, cpu)
    _check_format(format, sampler.shape)
    _check_pixels(pixels)
    options = how.options_of(
        method, eta, corrections, step_size, clip, variance, guidance, null_label
    )
    calls = how.check(options, sampler.diffusion, classes, unet)
    settings = {
        **models.identity(model, unet, sampler.diffusion, dtype, weights),
        **{"num": num, "seed": seed, "batch_size": batch_size},
        **{"steps": sampler.diffusion.num_steps, "spacing": spacing},
        **{"labels": labels, "format": format},
        **how.settings_of(options),
        **({} if pixels == "round" else {"pixels": pixels}),
    }
    folder = SampleFolder(out, settings, overwrite=overwrite)
    if folder.complete:
        typer.echo(f"{out} already holds these {num} images (--overwrite makes them again)")
        return
    typer.echo(sampler.explain(), err=True)
    parts = [range(i, min(i + batch_size, num)) for i in range(0, num, batch_size)]
    _run(sampler, folder, parts, seed, classes, options, calls, pixels)
    samples = folder.join(parts)
    written = (
        _write_pictures(folder, samples, format) if models.makes_pictures(sampler.shape) else []
    )
    folder.finish(samples, classes)
    typer.echo(f"{num} images in {out}: {', '.join([RESULT, *written])}")


def _check_format(format: str, shape: tuple[int, ...]) -> None:
    if format not in FORMATS:
        raise ValueError(f"--format is one of {', '.join(FORMATS)}; got {format!r}")
    if format == "png" and not models.makes_pictures(shape):
        raise ValueError(
            "--format png is for pictures of 1 or 3 channels; samples of this model are "
            f"{list(shape)}"
        )


def _check_pixels(pixels: str) -> None:
    if pixels not in PIXELS:
        raise ValueError(f"--pixels is one of {', '.join(PIXELS)}; got {pixels!r}")


def _parse_labels(text: str | None, num: int) -> list[int] | None:
    if text is None:
        return None
    try:
        classes = [int(word) for word in text.split(",")]
    except ValueError:
        raise ValueError(f"--labels expects classes as 0,1,2; got {text!r}") from None
    return [classes[i % len(classes)] for i in range(num)]


def _run(
    sampler: Sampler,
    folder: SampleFolder,
    parts: list[range],
    seed: int,
    classes: list[int] | None,
    options: Options,
    calls: int,
    pixels: str,
) -> None:
    """Make the batches that are not done yet. calls: of the network, for each image."""
    num = parts[-1].stop
    left = [part for part in parts if not folder.has(part)]
    work = sum(map(len, left)) * calls
    try:
        with Bar("sampling", work, unit="images", scale=1 / calls) as bar:
            for part in left:
                x = _batch(sampler, part, seed, classes, options, bar)
                folder.write(part, samples=as_pixels(x, pixels).numpy())
    except KeyboardInterrupt:
        done = sum(len(part) for part in parts if folder.has(part))
        typer.echo(
            f"{done} of {num} images are done and kept in {folder.folder}; "
            "the same command goes on from there",
            err=True,
        )
        raise


def _batch(
    sampler: Sampler,
    part: range,
    seed: int,
    classes: list[int] | None,
    options: Options,
    bar: Bar,
) -> Tensor:
    return sampler.sample(
        indices=part,
        seed=seed,
        labels=None if classes is None else classes[part.start : part.stop],
        progress=lambda _, __: bar.advance(len(part)),
        **options,
    )


def _write_pictures(folder: SampleFolder, samples: Images, format: str) -> list[str]:
    """The grid, and one file an image if asked for; returns what was written."""
    images = torch.from_numpy(samples)
    if images.is_floating_point():
        images = to_uint8(images.movedim(-1, 1))
    save_png(folder.folder / GRID, image_grid(images[:GRID_IMAGES]))
    if format == "npz":
        return [GRID]
    folder.picture(0).parent.mkdir(exist_ok=True)
    for i, image in enumerate(images):
        save_png(folder.picture(i), image)
    return [GRID, f"{IMAGES}/"]
