"""Turns in processes of their own, of which one at a time runs.

    answer = worker.turn()      SIGCONT, the turn, its answer, SIGSTOP

A library's threads go on spinning after its call: with as many threads as cores, they take the
core that the next contender's threads need. A stopped process takes nothing. Linux.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, NamedTuple, Protocol

from benchmarks import origin
from benchmarks.worker import Prepared, name_of

# Of what a worker has printed before it failed, so many lines are kept.
LAST_LINES = 5
# A turn is taken so often at most until the machine was steady meanwhile.
TRIES = 12


class Ended(RuntimeError):
    """A worker's process has ended instead of answering; the message says how."""


class Turns(Protocol):
    """What takes turns."""

    def turn(self) -> Any: ...


class Worker:
    """A prepared worker, stopped but for its turns.

    found: what preparing has found.
    """

    def __init__(self, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
        self._process, self._log = process, log
        self.found = self._answer()

    @property
    def pid(self) -> int:
        return self._process.pid

    def turn(self) -> Any:
        """Let it take its turn; its answer. Raises Ended if there is none."""
        assert self._process.stdin is not None
        self._process.send_signal(signal.SIGCONT)
        try:
            self._process.stdin.write(b"turn\n")
        except BrokenPipeError as error:
            raise self._ended() from error
        return self._answer()

    def end(self) -> None:
        """End it now, with all that it holds."""
        self._process.kill()
        self._process.wait()

    def _answer(self) -> Any:
        """The next answer; the process is stopped then."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            raise self._ended()
        self._process.send_signal(signal.SIGSTOP)
        # All of its threads have stopped, or it has ended, which the next turn will find.
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        return json.loads(line)

    def _ended(self) -> Ended:
        code = self._process.wait()
        how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").splitlines()
        return Ended("\n".join([how, *lines[-LAST_LINES:]]))


@contextmanager
def worker(
    prepare: Callable[..., Prepared],
    path: str = "",
    patience: float | None = None,
    **arguments: Any,
) -> Iterator[Worker]:
    """A worker that has run prepare(**arguments), until the context ends.

    prepare:  a function that a worker can import. arguments: what JSON can hold.
    path:     folders that come first where the worker imports from.
    patience: seconds that preparing may take; None: any.
    Raises Ended if it fails, or is killed because it took longer.
    """
    command = [sys.executable, "-m", "benchmarks.worker", name_of(prepare)]
    command += [json.dumps(arguments), str(os.getpid())]
    paths = os.pathsep.join(part for part in (path, os.environ.get("PYTHONPATH", "")) if part)
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            bufsize=0,
            cwd=origin.REPOSITORY,
            env=os.environ | {"PYTHONPATH": paths},
        ) as process,
    ):
        timer = threading.Timer(patience or threading.TIMEOUT_MAX, process.kill)
        timer.daemon = True
        timer.start()
        try:
            prepared = Worker(process, log)
            timer.cancel()
            yield prepared
        finally:
            timer.cancel()
            # Also of a process that is stopped.
            process.kill()


class Rounds(NamedTuple):
    """What turns have given.

    answers:   by name, one a round.
    ended:     how those ended that did before the last round; they have no answers.
    disturbed: by name, of how many answers the machine was never steady.
    """

    answers: dict[str, list[Any]]
    ended: dict[str, str]
    disturbed: dict[str, int]


def interleaved(
    workers: Mapping[str, Turns], rounds: int, steady: Callable[[], bool] = lambda: True
) -> Rounds:
    """Let each take a turn in every round, in order: A B A B ...

    steady: whether the machine is as it should be, asked before and after each turn. A turn with a
            no is taken again, TRIES times at most.
    """
    found = Rounds({name: [] for name in workers}, {}, dict.fromkeys(workers, 0))
    before = steady()
    for _ in range(rounds):
        for name in list(found.answers):
            try:
                for _ in range(TRIES):
                    answer, whole, before = workers[name].turn(), before, steady()
                    if whole and before:
                        break
                else:
                    found.disturbed[name] += 1
                found.answers[name].append(answer)
            except Ended as error:
                found.ended[name] = str(error)
                del found.answers[name], found.disturbed[name]
    return found
