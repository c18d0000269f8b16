"""Options of ``fastddpm sample`` on how its chain goes down; see ``fastddpm.sampler.Options``."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import torch
import typer

from fastddpm.diffusion import GaussianDiffusion
from fastddpm.sampler import Measured, Options, arguments
from fastddpm.sampler.methods import METHODS
from fastddpm.sampler.recipe import Recipe

Method: TypeAlias = Annotated[
    str, typer.Option(help="ancestral, ddim, dpm-solver++ (2M), or langevin.")
]
Eta: TypeAlias = Annotated[
    float, typer.Option(min=0, max=1, help="Noise of ddim: 0 none, 1 as much as ancestral.")
]
Corrections: TypeAlias = Annotated[
    int | None,
    typer.Option(min=0, help="Of langevin: its steps at each level, 1 by default; 0 is ancestral."),
]
StepSize: TypeAlias = Annotated[
    float | None,
    typer.Option(help="Of langevin: the size of those by beta, up to 1; 0.5 by default."),
]
Clip: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Bound of |x_0|: a number, none or dynamic; by default the model's."),
]
Variance: TypeAlias = Annotated[
    Path | None,
    typer.Option(help="Analytic variance, from what Sampler.measure found and saved in this file."),
]
Guidance: TypeAlias = Annotated[
    float | None,
    typer.Option(help="Scale of classifier-free guidance, 1 for none; needs --labels."),
]
NullLabel: TypeAlias = Annotated[
    int | None, typer.Option(min=0, help="Class that stands for none; by default the last.")
]


def options_of(
    method: str,
    eta: float,
    corrections: int | None,
    step_size: float | None,
    clip: str | None,
    variance: Path | None,
    guidance: float | None,
    null_label: int | None,
) -> Options:
    """The options as ``Sampler.sample`` takes them, those left out left to it."""
    options: Options = {"method": method, "eta": eta}
    if corrections is not None:
        options["corrections"] = corrections
    if step_size is not None:
        options["step_size"] = step_size
    if clip is not None:
        options["clip"] = _bound(clip)
    if variance is not None:
        options["variance"] = Measured.load(variance)
    if guidance is not None:
        options["guidance"] = guidance
    if null_label is not None:
        options["null_label"] = null_label
    return options


def check(
    options: Options, diffusion: GaussianDiffusion, classes: list[int] | None, unet: Any
) -> int:
    """How often the chain calls the network; ValueError for options that do not fit together,
    before anything is written."""
    if options["method"] == "ddim-inverse":
        raise ValueError("--method ddim-inverse leads from images to noise: see Sampler.invert")
    if options["method"] not in METHODS:
        drawing = ", ".join(method for method in METHODS if method != "ddim-inverse")
        raise ValueError(f"--method is one of {drawing}; got {options['method']!r}")
    recipe = Recipe.of(diffusion, options)
    chain, _ = recipe.steps(recipe.diffusion(diffusion))
    if recipe.guided:
        rows = None if classes is None else torch.tensor(classes)
        arguments.guidance(unet, rows, **options)
    return chain.num_steps


def settings_of(options: Options) -> dict[str, Any]:
    """What settings files hold of them; nothing of the plain chain."""
    plain = [("method", "ancestral"), ("eta", 0.0)]
    held: dict[str, Any] = {k: v for k, v in options.items() if (k, v) not in plain}
    if "variance" in options:
        measured = options["variance"]
        columns = (measured.timesteps, measured.epsilon_square)
        text = repr([column.tolist() for column in columns])
        held["variance"] = "analytic, measured sha256 " + hashlib.sha256(text.encode()).hexdigest()
    return held


def _bound(text: str) -> Any:
    if text in ("none", "dynamic"):
        return None if text == "none" else text
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"--clip is a number, none or dynamic; got {text!r}") from None
