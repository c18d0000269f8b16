"""A process that takes its turns when it is told to; benchmarks/turns.py starts it.

    python -m benchmarks.worker MODULE:FUNCTION ARGUMENTS PARENT

    found, turn = FUNCTION(**ARGUMENTS)     prepares
    out   found                             as lines of JSON
    in    turn                              for each such line
    out   turn()

ARGUMENTS are JSON; PARENT is the process that started it, whose end is its end. What libraries
print goes to standard error.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

# What a worker has found as it prepared, and its turn: both as JSON has them.
Prepared = tuple[Any, Callable[[], Any]]

# Of Linux's prctl: the signal that a process gets when its parent ends.
PR_SET_PDEATHSIG = 1


def name_of(function: Callable[..., Any]) -> str:
    """MODULE:FUNCTION of a function that a worker can import."""
    return f"{function.__module__}:{function.__qualname__}"


def named(name: str) -> Callable[..., Any]:
    """The function of that name."""
    module, function = name.split(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def end_with(parent: int) -> None:
    """Let this process be killed, stopped or not, when its parent ends."""
    # The parent tells when a turn is over: Ctrl-C, which reaches all processes, is for it alone.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit("the parent has ended")


def main(name: str, arguments: str, parent: str) -> None:
    """Prepare, answer, and take a turn for each line that asks for one."""
    end_with(int(parent))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(value: Any) -> None:
        print(json.dumps(value), file=answers, flush=True)

    try:
        found, turn = named(name)(**json.loads(arguments))
    except ImportError as error:
        raise SystemExit(str(error)) from error
    answer(found)
    for _ in sys.stdin:
        answer(turn())


if __name__ == "__main__":
    main(*sys.argv[1:])
