"""``fastddpm evaluate nll | rate-distortion | frechet``: what a model is worth, measured."""

from __future__ import annotations

import typer

from fastddpm.cli import evaluate_bound, evaluate_frechet


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    commands = typer.Typer(
        help="Measure a model: bits per dimension, rate against distortion, samples against data.",
        no_args_is_help=True,
        rich_markup_mode="markdown",
    )
    for command in (evaluate_bound, evaluate_frechet):
        command.register(commands)
    app.add_typer(commands, name="evaluate")
