"""``fastddpm decompress``: the pictures of a file that ``fastddpm compress`` wrote, or of its
beginning."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, TypeAlias

import numpy as np
import typer

from fastddpm import atomic
from fastddpm.cli import model as models
from fastddpm.cli.compress import PARTS, follow, load_codec
from fastddpm.cli.progress import Bar
from fastddpm.codec import Decoded, container
from fastddpm.engine import CpuOptions
from fastddpm.sampler import save_png

File: TypeAlias = Annotated[Path, typer.Argument(help="What `fastddpm compress` wrote.")]
Until: TypeAlias = Annotated[
    int | None,
    typer.Option(min=1, help="Stage to end at: 1 is x_T, K the last state, K + 1 the pixels."),
]
Bytes: TypeAlias = Annotated[
    int | None, typer.Option("--bytes", min=1, help="Read only so many bytes of FILE.")
]
Partial: TypeAlias = Annotated[
    bool,
    typer.Option("--partial", help="Take a file that was cut off or changed as far as it goes."),
]
Out: TypeAlias = Annotated[
    Path, typer.Option("--out", "-o", help="Folder of PNG files, or an .npz to write.")
]
Overwrite: TypeAlias = Annotated[bool, typer.Option(help="Replace files in the places of ours.")]

# As ``_name`` names them.
_NUMBERED = re.compile(r"[0-9]{6}\.png")


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("decompress")(decompress)


def decompress(
    file: File,
    model: models.Model = "mnist",
    until: Until = None,
    bytes_: Bytes = None,
    partial: Partial = False,
    engine: models.Engine = "auto",
    device: models.Device = None,
    dtype: models.Dtype = "float32",
    threads: models.Threads = None,
    weights: models.Weights = "float32",
    memory: models.Memory = "small",
    out: Out = Path("decompressed"),
    overwrite: Overwrite = False,
) -> None:
    """Write the images of FILE to OUT: exactly as they were, or the model's estimates from the
    beginning of FILE.

    OUT is a folder of 000000.png, ..., or an .npz with "samples", uint8 [N, H, W, C], and
    "lossless", bool [N].
    """
    data = file.read_bytes()
    if bytes_ is not None and bytes_ < len(data):
        data, partial = data[:bytes_], True
    header, _, _ = container.unpack(data)
    _refuse_mixing(out, header.images, overwrite)
    cpu = CpuOptions(threads, weights, memory)
    codec, _ = load_codec(model, engine, device, dtype, cpu)
    atomic.prepare(out if out.suffix == ".npz" else out / _name(0))
    with Bar("decompressing", PARTS, unit="‰") as bar:
        decoded = codec.decode(data, until, partial=partial, progress=follow(bar))
    _write(out, decoded)
    exact, count = int(decoded.lossless.sum()), len(decoded.images)
    what = f"{exact} of them exact, the others estimates" if exact < count else "exact"
    if decoded.checked < decoded.stage:
        what += f" (checked to stage {decoded.checked}, after that as the bytes say)"
    stage = f"stage {decoded.stage} of {decoded.stages}"
    typer.echo(f"{count} images in {out}: {len(data)} bytes, {stage}, {what}")


def _refuse_mixing(out: Path, count: int, overwrite: bool) -> None:
    """ValueError where our files would replace others, or lie among those of a longer run."""
    ours = [out] if out.suffix == ".npz" else [out / _name(j) for j in range(count)]
    replaced = [path for path in ours if path.exists()]
    if replaced and not overwrite:
        raise ValueError(f"{replaced[0]} exists: choose another --out, or --overwrite")
    pictures = [] if out.suffix == ".npz" else sorted(out.glob("*.png"))
    longer = [p for p in pictures if _NUMBERED.fullmatch(p.name) and int(p.stem) >= count]
    if longer:
        raise ValueError(
            f"{out} holds {longer[0].name}, of more images than the {count} of this file: choose "
            "another --out, or remove it"
        )


def _name(j: int) -> str:
    """The file of an image."""
    return f"{j:06d}.png"


def _write(out: Path, decoded: Decoded) -> None:
    if out.suffix == ".npz":
        with atomic.replacing(out) as partial, partial.open("wb") as opened:
            held = {"samples": decoded.images.numpy(), "lossless": decoded.lossless.numpy()}
            np.savez(opened, allow_pickle=False, **held)
        return
    for j, image in enumerate(decoded.images):
        save_png(out / _name(j), image)
