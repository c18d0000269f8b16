"""``fastddpm progressive``: what the chain takes the image for on its way (Ho et al. 2020, figure
6)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import torch
import typer
from torch import Tensor

from fastddpm.cli import grid
from fastddpm.cli import method as how
from fastddpm.cli import model as models
from fastddpm.cli.progress import Bar
from fastddpm.cli.sample import Spacing, Steps
from fastddpm.engine import CpuOptions
from fastddpm.sampler import Options, Sampler

COMMAND = "fastddpm progressive"

Num: TypeAlias = Annotated[int, typer.Option("--num", "-n", min=1, help="Images, a row each.")]
Columns: TypeAlias = Annotated[
    int,
    typer.Option(min=1, help="Estimates in a row, evenly spread over the chain; the last at 0."),
]
Label: TypeAlias = Annotated[
    int | None, typer.Option("--label", help="Class of all images, if the model has classes.")
]


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("progressive")(progressive)


def progressive(
    model: models.Model = "mnist",
    num: Num = 8,
    seed: models.Seed = 0,
    columns: Columns = 10,
    steps: Steps = None,
    spacing: Spacing = "linspace",
    method: how.Method = "ancestral",
    eta: how.Eta = 0.0,
    corrections: how.Corrections = None,
    step_size: how.StepSize = None,
    clip: how.Clip = None,
    engine: models.Engine = "auto",
    device: models.Device = None,
    dtype: models.Dtype = "float32",
    threads: models.Threads = None,
    weights: models.Weights = "float32",
    memory: models.Memory = "small",
    label: Label = None,
    out: grid.Out = Path("progressive.png"),
    overwrite: grid.Overwrite = False,
) -> None:
    """Draw images, and show the estimate of x_0 at several steps of the chain.

    Writes one row for each image, time running to the right, and the settings beside it as OUT with
    the ending .json. The last column is what fastddpm sample draws with the same seed.
    """
    grid.check_out(out, overwrite)
    cpu = CpuOptions(threads, weights, memory)
    sampler, unet = models.load_sampler(model, steps, spacing, engine, device, dtype, cpu)
    grid.check_model(sampler)
    options = how.options_of(method, eta, corrections, step_size, clip, None, None, None)
    calls = how.check(options, sampler.diffusion, None, unet)
    with grid.unwritten():
        left, images = _estimates(sampler, num, seed, -(-calls // columns), calls, label, options)
    settings = {
        "command": COMMAND,
        **models.identity(model, unet, sampler.diffusion, dtype, weights),
        **{"num": num, "seed": seed, "label": label, "steps_to_go": left},
        **{"steps": sampler.diffusion.num_steps, "spacing": spacing},
        **how.settings_of(options),
    }
    grid.write(out, images, settings)
    typer.echo(f"{num} images with {len(left)} estimates each in {out}")


def _estimates(
    sampler: Sampler,
    num: int,
    seed: int,
    every: int,
    calls: int,
    label: int | None,
    options: Options,
) -> tuple[list[int], Tensor]:
    """The steps still to go at each estimate, K of them, and the estimates [num, K, C, H, W]."""
    left, estimates = [], []
    with Bar("sampling", calls) as bar:
        before = calls
        for moment in sampler.stream(num, seed, every, labels=label, **options):
            left.append(moment.t)
            estimates.append(moment.x_0)
            bar.advance(before - moment.t)
            before = moment.t
    return left, torch.stack(estimates, dim=1)
