"""A progress bar with rate and time left, shown once a job has lasted two seconds."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

DELAY_SECONDS = 2.0


class _Rate(ProgressColumn):
    """Units finished per second since the start."""

    def __init__(self, unit: str, scale: float) -> None:
        super().__init__()
        self._unit = unit
        self._scale = scale

    def render(self, task: Task) -> Text:
        if not task.elapsed or not task.completed:
            return Text("")
        return Text(f"{self._scale * task.completed / task.elapsed:.3g} {self._unit}/s")


class Bar:
    """``with Bar("sampling", total=640, unit="images", scale=0.001) as bar: bar.advance(5)``.

    total:       what ``advance`` sums to at the end.
    unit, scale: the rate shown is scale times the progress per second, in ``unit``; where the bar
                 counts image-steps and a chain has 1000 steps, images/s need scale = 0.001.
    """

    def __init__(self, what: str, total: int, unit: str = "steps", scale: float = 1.0) -> None:
        self._progress = Progress(
            TextColumn(what),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(unit, scale),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task(what, total=total)
        self._shown = False

    def __enter__(self) -> Bar:
        self._began = time.monotonic()
        return self

    def advance(self, amount: int = 1) -> None:
        """Count ``amount`` more as done."""
        if not self._shown and time.monotonic() - self._began > DELAY_SECONDS:
            self._progress.start()
            self._shown = True
        self._progress.advance(self._task, amount)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._shown:
            self._progress.stop()
