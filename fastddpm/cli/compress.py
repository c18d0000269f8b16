"""``fastddpm compress``: pictures into one file of which any beginning decodes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import torch
import typer
from torch import Tensor

from fastddpm import atomic
from fastddpm.cli import model as models
from fastddpm.cli.progress import Bar
from fastddpm.codec import Codec, Encoded, Journal
from fastddpm.codec.codec import TARGET
from fastddpm.engine import CpuOptions
from fastddpm.evaluation import ImageFile
from fastddpm.sampler import load_png
from fastddpm.sampler.model import sample_shape
from fastddpm.train.data import IMAGE_SUFFIXES, load_images
from fastddpm.unet import UNet

Images: TypeAlias = Annotated[
    list[Path],
    typer.Argument(
        help="Pictures of the model's size; or an .npz, an IDX file or a folder of images."
    ),
]
Num: TypeAlias = Annotated[
    int | None, typer.Option("--num", "-n", min=1, help="Only the first so many of the images.")
]
Steps: TypeAlias = Annotated[
    int | None,
    typer.Option(min=1, help="Steps of the chain, 1 to T, dense at small t; 40 by default, or T."),
]
BlockBits: TypeAlias = Annotated[
    float,
    typer.Option(
        min=1,
        max=16,
        help="Bits of a block, in halves. One more takes twice the time and saves bytes.",
    ),
]
Out: TypeAlias = Annotated[Path, typer.Option("--out", "-o", help="File to write.")]
Overwrite: TypeAlias = Annotated[
    bool,
    typer.Option(help="Replace OUT, and what a stopped run of other settings has kept beside it."),
]

# Of a bar.
PARTS = 1000


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("compress")(compress)


def compress(
    images: Images,
    model: models.Model = "mnist",
    num: Num = None,
    steps: Steps = None,
    block_bits: BlockBits = TARGET,
    seed: models.Seed = 0,
    engine: models.Engine = "auto",
    device: models.Device = None,
    dtype: models.Dtype = "float32",
    threads: models.Threads = None,
    weights: models.Weights = "float32",
    memory: models.Memory = "small",
    out: Out = Path("images.ddp"),
    overwrite: Overwrite = False,
) -> None:
    """Write images losslessly to OUT, in the order of what tells most: any beginning of the file
    decodes to the model's estimate of all images, `fastddpm decompress --partial`.

    Decode with the same model, engine and dtype on the same kind of machine: the pixels need the
    network's very numbers. OUT is written when all is done. What has been found is kept in
    OUT.journal until then: after Ctrl-C or a crash the same command goes on where it stopped, and
    writes the same bytes. OUT.json tells bytes, bits by part, the ideal bits and the settings.
    """
    told = out.with_name(f"{out.name}.json")
    for path in (out, told):
        if path.exists() and not overwrite:
            raise ValueError(f"{path} exists: choose another --out, or --overwrite")
    cpu = CpuOptions(threads, weights, memory)
    codec, unet = load_codec(model, engine, device, dtype, cpu)
    pixels = _read(images, unet)[:num]
    settings = {
        **models.identity(model, unet, codec.diffusion, dtype, weights),
        **{"images_sha256": hashlib.sha256(pixels.numpy().tobytes()).hexdigest()},
        **{"num": len(pixels), "steps": steps, "block_bits": block_bits, "seed": seed},
    }
    atomic.prepare(told)
    atomic.prepare(out)
    place = out.with_name(f"{out.name}.journal")
    with Journal(place, settings, overwrite=overwrite) as journal:
        encoded = _encoded(codec, pixels, journal, steps=steps, seed=seed, target=block_bits)
    result = {**_figures(encoded, pixels), "settings": settings}
    atomic.write(told, json.dumps(result, indent=2) + "\n")
    atomic.write(out, encoded.data)
    journal.remove()
    typer.echo(f"{len(pixels)} images in {out}: {_described(encoded, pixels)}")


def _encoded(codec: Codec, pixels: Tensor, journal: Journal, **options: Any) -> Encoded:
    """The file of the images; tells what an earlier run has kept, and what this one keeps."""
    if journal.left_out:
        what = f"the last {journal.left_out} bytes of {journal.path}"
        typer.echo(f"{what} begin with damage: they are left out", err=True)
    if len(journal):
        typer.echo(f"going on: {len(journal)} blocks are found already", err=True)
    try:
        with Bar("compressing", PARTS, unit="images", scale=len(pixels) / PARTS) as bar:
            return codec.encode(pixels, progress=follow(bar), journal=journal, **options)
    except KeyboardInterrupt:
        kept = f"{len(journal)} blocks are found and kept in {journal.path}"
        line = f"{kept}; the same command goes on from there" if len(journal) else "nothing is kept"
        typer.echo(line, err=True)
        raise


def load_codec(
    model: str, engine: str, device: str | None, dtype: str, cpu: CpuOptions
) -> tuple[Codec, UNet]:
    """The codec of a model, as the options of a command say, and the model's network."""
    if dtype not in models.DTYPES:
        raise ValueError(f"--dtype is one of {', '.join(models.DTYPES)}; got {dtype!r}")
    sampler, unet = models.load_sampler(model, None, "linspace", engine, device, dtype, cpu)
    own = dataclasses.asdict(cpu)
    place = (engine, sampler.device, getattr(torch, dtype))
    return Codec(unet, sampler.diffusion, *place, **own), unet


def follow(bar: Bar) -> Callable[[int, int], None]:
    """Progress as the codec tells it, (done, in all), on a bar of PARTS."""
    shown = 0

    def progress(done: int, total: int) -> None:
        nonlocal shown
        bar.advance(PARTS * done // total - shown)
        shown = PARTS * done // total

    return progress


def _read(paths: list[Path], unet: UNet) -> Tensor:
    """All images, uint8 [N, H, W, C]; ValueError for one of another size than the model's."""
    shape = sample_shape(unet)
    assert shape is not None
    if not models.makes_pictures(shape):
        raise ValueError(f"images have 1 or 3 channels; samples of this model are {list(shape)}")
    channels, *size = shape
    read = []
    for path in paths:
        picture = path.suffix.lower() in IMAGE_SUFFIXES
        images = load_png(path, channels)[None] if picture else _held(path)
        if list(images.shape[1:]) != [*size, channels]:
            raise ValueError(
                f"{path}: expected images [H, W, C] = {[*size, channels]}, the model's, got "
                f"{list(images.shape[1:])}"
            )
        read.append(images)
    return torch.cat(read)


def _held(path: Path) -> Tensor:
    """The images of an archive, an IDX file or a folder, uint8 [N, H, W, C]."""
    if path.suffix != ".npz":
        return load_images(path).images.movedim(1, -1)
    archive = ImageFile(path)
    if not archive.holds_bytes:
        raise ValueError(f"{path} holds floats: the codec takes bytes, uint8 [N, H, W, C]")
    return archive.as_bytes().movedim(1, -1)


def _figures(encoded: Encoded, pixels: Tensor) -> dict[str, Any]:
    """The sizes of the file, and of the model's bound on the same chain."""
    ideal, numbers = float(encoded.ideal.sum()), pixels.numel()
    return {
        "bytes": len(encoded.data),
        "bits": encoded.parts,
        "ideal_bits": ideal,
        "bits_per_dimension": 8 * len(encoded.data) / numbers,
        "ideal_bits_per_dimension": ideal / numbers,
    }


def _described(encoded: Encoded, pixels: Tensor) -> str:
    figures = _figures(encoded, pixels)
    return (
        f"{figures['bytes']} bytes, {figures['bits_per_dimension']:.3f} bits per dimension (the "
        f"model's bound on the same chain: {figures['ideal_bits_per_dimension']:.3f})"
    )
