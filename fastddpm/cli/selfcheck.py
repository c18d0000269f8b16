"""``fastddpm doctor --selfcheck`` and ``--parity``: what the checks find, one line each."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
import typer

from fastddpm import atomic, selfcheck
from fastddpm.cli.progress import Bar
from fastddpm.selfcheck import Check, Outcome

MARKS = {True: "ok", False: "FAILED", None: "not run"}
# Of 64 hexadecimal digits of a hash; the JSON file has all.
DIGITS = 16


def report(checks: list[Check], json_file: Path | None = None) -> bool:
    """Run all checks and print what they find.

    json_file: where to write it too. Returns whether nothing failed.
    """
    outcomes = run_all(checks)
    for line in lines(outcomes):
        typer.echo(line)
    if json_file is not None:
        found = {
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "torch": torch.__version__,
            "outcomes": [outcome.as_dict() for outcome in outcomes],
        }
        atomic.write(json_file, json.dumps(found, indent=2) + "\n")
    return all(outcome.passed is not False for outcome in outcomes)


def run_all(checks: list[Check]) -> list[Outcome]:
    """The outcomes in order, behind a progress bar."""
    outcomes = []
    with Bar("checks", total=len(checks), unit="checks") as bar:
        for check in checks:
            outcomes.append(selfcheck.run(check))
            bar.advance()
    return outcomes


def lines(outcomes: Iterable[Outcome]) -> list[str]:
    """One line for each outcome, in columns."""
    outcomes = list(outcomes)
    width = max((len(outcome.name) for outcome in outcomes), default=0)
    return [f"{outcome.name:<{width}}  {_finding(outcome)}" for outcome in outcomes]


def _finding(outcome: Outcome) -> str:
    parts = [f"{MARKS[outcome.passed]}: {outcome.says}"]
    if outcome.difference is not None and outcome.bound is not None:
        parts.append(f"largest difference {outcome.difference:.3g}, bound {outcome.bound:.3g}")
    if outcome.sha256 is not None:
        parts.append(f"sha256 {outcome.sha256[:DIGITS]}")
    return "; ".join(parts)
