"""The table of checkpoints made to do harm: each is a function that writes one into an empty folder
and returns the path to read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

CASES: dict[str, Callable[[Path], Path]] = {}
Make = Callable[[Path], Path]
# The file that code of a checkpoint leaves behind where it is run.
TRACE = "code-has-run"
HUGE = 10**12


def case(name: str) -> Callable[[Make], Make]:
    def decorated(make: Make) -> Make:
        CASES[name] = make
        return make

    return decorated


def add(name: str, make: Make) -> None:
    CASES[name] = make
