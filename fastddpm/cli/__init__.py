"""The command line, one file per command: ``fastddpm sample | interpolate | train | ...``."""

from __future__ import annotations

from importlib import metadata

import typer

from fastddpm.cli import (
    branches,
    compress,
    convert,
    decompress,
    doctor,
    evaluate,
    interpolate,
    progressive,
    sample,
    train,
)
from fastddpm.cli.errors import Commands

app = typer.Typer(
    name="fastddpm",
    cls=Commands,
    help="Sample, train and evaluate denoising diffusion models (Ho, Jain, Abbeel 2020).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"fastddpm {metadata.version('fastddpm')}")
        raise typer.Exit


@app.callback()
def _options(
    debug: bool = typer.Option(
        False, "--debug", help="Show the traceback of an error (or set FASTDDPM_DEBUG=1)."
    ),
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print it and leave."
    ),
) -> None:
    """Options of every command; ``debug`` is read by fastddpm.cli.errors.Commands."""


_COMMANDS = (
    *(sample, progressive, interpolate, branches),
    *(compress, decompress, train, evaluate, convert, doctor),
)

for _command in _COMMANDS:
    _command.register(app)


def main() -> None:
    """The console script."""
    app()
