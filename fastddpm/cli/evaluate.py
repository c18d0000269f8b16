"""``fastddpm evaluate nll | rate-distortion | ...``: what a model is worth, measured; one file per
command."""

from __future__ import annotations

import typer

from fastddpm.cli import evaluate_bound


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    commands = typer.Typer(
        help="Measure a model: bits per dimension, rate against distortion.",
        no_args_is_help=True,
        rich_markup_mode="markdown",
    )
    for command in (evaluate_bound,):
        command.register(commands)
    app.add_typer(commands, name="evaluate")
