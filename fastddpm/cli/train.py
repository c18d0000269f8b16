"""``fastddpm train``: the settings of TrainConfig as a TOML file, flags, or both.

The flags are made from the fields of the dataclass: there is no second list of them.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from fastddpm.cli.errors import INTERRUPTED
from fastddpm.cli.progress import Bar
from fastddpm.train import Outcome, Progress, TrainConfig, train
from fastddpm.train.settings import Setting, leaves, load

HELP = (
    "Train a model, or go on with a run that was stopped.\n\n"
    "Settings come from CONFIG.toml, whose keys are the flags' names (the network's in a table "
    "unet), and flags override them. Paths are relative to the current folder. Everything is "
    "written to the folder OUT: config.toml, log.jsonl, checkpoints, samples and, at the end, the "
    "model. The same command again resumes from the last checkpoint.\n\n"
    "Examples:\n\n"
    "  fastddpm train mnist.toml\n\n"
    "  fastddpm train mnist.toml --steps 20000 --out runs/short --unet-dropout 0.1\n"
)


def register(app: typer.Typer) -> None:
    """Adds the command to the application."""
    app.command("train", help=HELP, no_args_is_help=True)(command())


def command() -> Callable[..., None]:
    """The command as a function whose parameters are CONFIG and one flag per setting."""

    def run(config: Path | None = None, **flags: str | bool | None) -> None:
        given = {names[key]: value for key, value in flags.items() if value is not None}
        train_command(load(TrainConfig, config, given))

    settings = list(leaves(TrainConfig))
    names = {_parameter_name(s): s.name for s in settings}
    parameters = [_config_parameter(), *(_flag(s) for s in settings)]
    # inspect.signature reads this attribute, which the type of functions does not declare.
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def train_command(config: TrainConfig) -> None:
    """Trains with a progress bar; exits with 130 if it was stopped."""
    with ExitStack() as stack:
        bar: Bar | None = None

        def show(progress: Progress) -> None:
            nonlocal bar
            # Only now is it known how many steps a resumed run still has.
            bar = bar or stack.enter_context(Bar("training", progress.steps - progress.first))
            bar.advance()
            if progress.record is not None and not sys.stderr.isatty():
                print(_line(progress), file=sys.stderr, flush=True)

        outcome = train(config, show)
    typer.echo(_summary(config, outcome))
    if outcome.reason == "interrupted":
        raise typer.Exit(INTERRUPTED)


def _line(progress: Progress) -> str:
    values = dict(progress.record or {})
    values.pop("step", None)
    shown = "  ".join(f"{name} {value:.5g}" for name, value in values.items())
    return f"step {progress.step}/{progress.steps}  {shown}"


def _summary(config: TrainConfig, outcome: Outcome) -> str:
    if outcome.reason == "finished":
        return f"finished after {outcome.step} steps: {outcome.model}"
    why = "stopped" if outcome.reason == "interrupted" else "time limit"
    model = f"; model so far: {outcome.model}" if outcome.model else ""
    return (
        f"{why} after {outcome.step} of {config.steps} steps, saved {outcome.checkpoint}{model}; "
        "the same command goes on from there"
    )


def _config_parameter() -> inspect.Parameter:
    argument = typer.Argument(metavar="[CONFIG.toml]", help="settings file", show_default=False)
    return inspect.Parameter(
        "config",
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        default=None,
        annotation=Annotated[Path | None, argument],
    )


def _flag(setting: Setting) -> inspect.Parameter:
    """An option that is None unless given: the file's value, or the default, stands then."""
    # In the panel of the network a column of --no-... would leave no room for the names.
    switch = setting.hint is bool and "." not in setting.name
    option = typer.Option(
        f"{setting.flag}/--no-{setting.flag[2:]}" if switch else setting.flag,
        help=f"{setting.help}; default: {_default_text(setting)}",
        metavar=None if switch else _metavar(setting),
        rich_help_panel=setting.metadata.get("group", "Network"),
        show_default=False,
    )
    kind = bool if switch else str
    return inspect.Parameter(
        _parameter_name(setting),
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, option],
    )


def _parameter_name(setting: Setting) -> str:
    return setting.name.replace(".", "__")


def _metavar(setting: Setting) -> str:
    """The type, short enough for the names beside it: the widest union is one of sizes."""
    return setting.kind.replace("integer or integer,...", "integer,...").replace(" or none", "?")


def _default_text(setting: Setting) -> str:
    value: Any = setting.default
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(str(v) for v in value)
    return "none" if value in (None, "") else str(value)
