"""The command line: ``fastddpm sample | interpolate | train | convert | doctor``, one file per
command."""

from __future__ import annotations

import importlib.util
from importlib import import_module

import typer

from fastddpm.cli import doctor, interpolate, sample
from fastddpm.cli.errors import Commands

app = typer.Typer(
    name="fastddpm",
    cls=Commands,
    help="Sample, train and evaluate denoising diffusion models (Ho, Jain, Abbeel 2020).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _options(
    debug: bool = typer.Option(
        False, "--debug", help="Show the traceback of an error (or set FASTDDPM_DEBUG=1)."
    ),
) -> None:
    """Options of every command; ``debug`` is read by fastddpm.cli.errors.Commands."""


for _command in (sample, interpolate, doctor):
    _command.register(app)
for _name in ("fastddpm.cli.train", "fastddpm.cli.convert"):
    if importlib.util.find_spec(_name) is not None:
        import_module(_name).register(app)


def main() -> None:
    """The console script."""
    app()
