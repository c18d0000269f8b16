"""A plugin for pytest: diffusers' test classes of a scheduler test ours instead.

Nothing else in a suite is touched. Its last line names the classes, so that a run can be told from
one in which nothing was swapped.
"""

from __future__ import annotations

import pytest

from fastddpm.integrations import diffusers as integration

_swapped: set[str] = set()


def pytest_pycollect_makeitem(collector: object, name: str, obj: object) -> None:
    theirs = vars(obj).get("scheduler_classes", ()) if isinstance(obj, type) else ()
    if not theirs:
        return
    names = [integration.SCHEDULERS[scheduler.__name__] for scheduler in theirs]
    obj.scheduler_classes = tuple(getattr(integration, ours) for ours in names)
    _swapped.update(f"{name}: {ours}" for ours in names)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(f"swapped {sorted(_swapped)}")
