"""The launches of a call of an op: written down, or run as a GPU would run them.

Every op launches through ``Launch.run``; inside these contexts that method does something else, so
that what is measured or executed is what the op itself asks for, on CPU tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from fastddpm.kernels.common.launch import Launch

from .execution import Execution, execute


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Nothing is run: the launches, in order."""
    launches: list[Launch] = []
    with _replaced(launches.append):
        yield launches


@contextmanager
def emulated(
    sm: int, *, in_place: Collection[str] = (), partial: Collection[str] = ()
) -> Iterator[list[Execution]]:
    """Every launch is executed (see ``execute``): the executions, in order."""
    executions: list[Execution] = []

    def run(launch: Launch) -> None:
        executions.append(execute(launch, sm, in_place=in_place, partial=partial))

    with _replaced(run):
        yield executions


@contextmanager
def _replaced(run: Callable[[Launch], None]) -> Iterator[None]:
    original = Launch.run
    Launch.run = lambda launch: run(launch) if 0 not in launch.grid else None  # type: ignore
    try:
        yield
    finally:
        Launch.run = original  # type: ignore[method-assign]
