"""A PNG grid that a command writes, and the settings beside it as its name with .json."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer
from torch import Tensor

from fastddpm import atomic
from fastddpm.cli import model as models
from fastddpm.sampler import Sampler, image_grid, save_png, to_uint8

Out: TypeAlias = Annotated[Path, typer.Option("--out", "-o", help="PNG to write.")]
Overwrite: TypeAlias = Annotated[bool, typer.Option(help="Replace OUT and the settings beside it.")]


def check_out(out: Path, overwrite: bool) -> None:
    """ValueError for what is no PNG, or would be written over."""
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out must end in .png, got {out}")
    for file in (out, out.with_suffix(".json")):
        if file.exists() and not overwrite:
            raise ValueError(f"{file} exists: choose another --out, or --overwrite")


def check_model(sampler: Sampler) -> None:
    """ValueError for samples that are no pictures."""
    if not models.makes_pictures(sampler.shape):
        raise ValueError(
            "the grid is of pictures of 1 or 3 channels; samples of this model are "
            f"{list(sampler.shape)}"
        )


def steps_of(text: str, sampler: Sampler) -> list[int]:
    """Step indices as "500" or "250,500"; ValueError for others."""
    last = sampler.diffusion.num_steps - 1
    try:
        steps = [int(word) for word in text.split(",")]
    except ValueError:
        steps = []
    if not steps or not all(0 <= step <= last for step in steps):
        raise ValueError(f"--t is a step index from 0 to {last}, or several as 1,2; got {text}")
    return steps


def write(out: Path, rows: Tensor, settings: dict[str, Any]) -> None:
    """The images of R rows, float32 [R, N, C, H, W] in [-1, 1], and the settings."""
    out.parent.mkdir(parents=True, exist_ok=True)
    save_png(out, image_grid(to_uint8(rows.flatten(0, 1)), columns=rows.shape[1]))
    atomic.write(out.with_suffix(".json"), json.dumps(settings, indent=2) + "\n")


@contextmanager
def unwritten() -> Iterator[None]:
    """Around the work before ``write``: Ctrl-C tells that there is nothing yet."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("nothing was written; the same command starts again", err=True)
        raise
