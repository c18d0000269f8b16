"""A benchmark of pytest-benchmark whose rivals take their turns between its rounds.

    round   each rival's turn, as the round's setup; then ours, which pytest-benchmark times
    ratio   round by round, rival / ours

A turn gives the milliseconds of one call: measured here by one of timing's clocks, or by a worker
(cpu/turns.py) where libraries have threads of their own. pytest-benchmark's clock is told them, so
that its table shows the time of a call and not that of a turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks import timing

OURS = "fastddpm"
# Milliseconds of one call.
Turn = Callable[[], float]


class TurnClock:
    """Seconds of all of our turns so far."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def __call__(self) -> float:
        return self._seconds

    def add(self, milliseconds: float) -> None:
        self._seconds += milliseconds / 1e3


CLOCK = TurnClock()


def timed(call: Callable[[], object]) -> Turn:
    """Turns of a call in this process, by the clock on the wall."""
    return lambda: timing.wall_milliseconds(call)


def side_by_side(benchmark: Any, turns: Mapping[str, Turn], rounds: int) -> dict[str, Any]:
    """Runs the rounds; the milliseconds of every contender and how many times faster ours is.

    turns: by name, OURS among them.
    """
    taken: dict[str, list[float]] = {name: [] for name in turns}

    def take(name: str) -> None:
        taken[name].append(turns[name]())

    def rivals() -> None:
        for name in turns:
            if name != OURS:
                take(name)

    def ours() -> None:
        take(OURS)
        CLOCK.add(taken[OURS][-1])

    benchmark.pedantic(ours, setup=rivals, rounds=rounds, iterations=1)
    return {
        "milliseconds": {name: timing.summary(samples) for name, samples in taken.items()},
        "times_faster_than": {
            name: timing.ratio(taken[OURS], samples)
            for name, samples in taken.items()
            if name != OURS
        },
    }
