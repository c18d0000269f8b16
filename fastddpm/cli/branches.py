"""``fastddpm branches``: images that share x_t of one chain (Ho et al. 2020, figure 7)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import torch
import typer

from fastddpm.cli import grid
from fastddpm.cli import model as models
from fastddpm.cli.progress import Bar
from fastddpm.engine import CpuOptions

COMMAND = "fastddpm branches"

Index: TypeAlias = Annotated[int, typer.Argument(min=0, help="The sample whose chain is shared.")]
SharedAt: TypeAlias = Annotated[
    str,
    typer.Option(
        "--t", "-t", help="Steps to branch at, 0 to T-1; smaller shares more. A row each."
    ),
]
Num: TypeAlias = Annotated[int, typer.Option("--num", "-n", min=1, help="Branches of each.")]
Label: TypeAlias = Annotated[
    int | None, typer.Option("--label", help="Class of all images, if the model has classes.")
]


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("branches")(branches)


def branches(
    index: Index = 0,
    model: models.Model = "mnist",
    t: SharedAt = "750,500,250",
    num: Num = 8,
    seed: models.Seed = 0,
    engine: models.Engine = "auto",
    device: models.Device = None,
    dtype: models.Dtype = "float32",
    threads: models.Threads = None,
    weights: models.Weights = "float32",
    memory: models.Memory = "small",
    label: Label = None,
    out: grid.Out = Path("branches.png"),
    overwrite: grid.Overwrite = False,
) -> None:
    """Go down one sample's chain, and draw several images from where it is at each of some steps.

    Writes a row for each step: the shared x_t, then what it leads to with other noise; and the
    settings beside it as OUT with the ending .json. All images run as one batch.
    """
    grid.check_out(out, overwrite)
    cpu = CpuOptions(threads, weights, memory)
    sampler, unet = models.load_sampler(model, None, "linspace", engine, device, dtype, cpu)
    grid.check_model(sampler)
    levels = grid.steps_of(t, sampler)
    with grid.unwritten(), Bar("sampling", sampler.diffusion.num_steps) as bar:
        found = sampler.branches(
            *(index, levels, num, seed), labels=label, progress=lambda _, __: bar.advance()
        )
    settings = {
        "command": COMMAND,
        **models.identity(model, unet, sampler.diffusion, dtype, weights),
        **{"index": index, "t": levels, "num": num, "seed": seed, "label": label},
    }
    grid.write(out, torch.cat([found.x_t[:, None], found.images], dim=1), settings)
    typer.echo(f"{len(levels) * num} images of sample {index}'s chain in {out}")
