"""Turns in processes of their own: the protocol, who is stopped, and how processes end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

# benchmarks/ is no part of the package. Appended, so that nothing installed is shadowed.
sys.path.append(str(Path(__file__).parents[1]))

import fake_contenders as fakes

from benchmarks.cpu.steady import Steady
from benchmarks.turns import TRIES, Ended, Worker, interleaved, worker

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="stops processes as Linux does")

# A parent that ends by itself or in an error, one worker waiting for its turn, another preparing.
PARENT = """
import os, sys
sys.path[:0] = [{tests!r}, {root!r}]
import fake_contenders as fakes
from benchmarks.turns import worker
with worker(fakes.counting, path=fakes.FOLDER, start=0) as stopped:
    print(stopped.pid, flush=True)
    {end}
"""


def state(pid: int) -> str:
    """R, S, T (stopped) ... or nothing for a process that is no more."""
    file = Path(f"/proc/{pid}/stat")
    try:
        return file.read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def processor_ticks(pid: int) -> int:
    """Of the user and the system, by all threads of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether it holds within a minute."""
    end = time.monotonic() + 60
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def test_a_worker_answers_whatever_libraries_print() -> None:
    with worker(fakes.counting, path=fakes.FOLDER, start=5, say='{"found": 1}') as one:
        assert one.found == {"start": 5}
        assert [one.turn() for _ in range(3)] == [5, 6, 7]


def test_turns_are_interleaved() -> None:
    order: list[str] = []

    class Noted:
        def __init__(self, name: str, own: Worker) -> None:
            self.name, self.own = name, own

        def turn(self) -> object:
            order.append(self.name)
            return self.own.turn()

    with (
        worker(fakes.counting, path=fakes.FOLDER, start=0) as a,
        worker(fakes.counting, path=fakes.FOLDER, start=10) as b,
    ):
        answers, ended, _ = interleaved({"a": Noted("a", a), "b": Noted("b", b)}, 3)
    assert answers == {"a": [0, 1, 2], "b": [10, 11, 12]} and not ended
    assert order == ["a", "b"] * 3


class Counted:
    """Turns without a process: 0, 1, 2, ..."""

    def __init__(self) -> None:
        self.count = -1

    def turn(self) -> int:
        self.count += 1
        return self.count


def test_a_turn_counts_if_the_machine_was_steady_before_and_after() -> None:
    # Before the first turn and after each.
    looks = iter([True, True, False, True, True, True])
    found = interleaved({"a": Counted(), "b": Counted()}, 2, lambda: next(looks, True))
    # b's first turn has a no after it, its second a no before it.
    assert found.answers == {"a": [0, 1], "b": [2, 3]}
    assert found.disturbed == {"a": 0, "b": 0}


def test_a_machine_that_is_never_steady_is_told() -> None:
    one = Counted()
    found = interleaved({"a": one}, 2, lambda: False)
    assert found.answers == {"a": [TRIES - 1, 2 * TRIES - 1]} and found.disturbed == {"a": 2}


def test_steady_is_the_best_rate_of_a_processor_all_the_time() -> None:
    found = [(100.0, 1.0), (50.0, 1.0), (96.0, 0.5), (95.0, 1.0), (200.0, 1.0), (95.0, 1.0)]
    peaks = iter([{"flop_per_second": rate, "processor_share": share} for rate, share in found])

    class Peaks:
        def turn(self) -> dict[str, float]:
            return next(peaks)

    steady = Steady(Peaks())
    assert [steady() for _ in found] == [True, False, False, True, True, False]
    figures = steady.figures()
    assert figures["looks"] == 6 and figures["looks_at_the_whole_machine"] == 1
    assert figures["peak_flop_per_second"]["median"] == 200


def test_a_worker_that_ends_is_left_out_and_the_others_go_on() -> None:
    with (
        worker(fakes.ending, path=fakes.FOLDER, turns=1, code=3) as a,
        worker(fakes.counting, path=fakes.FOLDER, start=0) as b,
    ):
        answers, ended, _ = interleaved({"a": a, "b": b}, 3)
        assert answers == {"b": [0, 1, 2]}
        assert ended == {"a": "exit code 3\na line\nthe last line"}
        # Nobody is there to be told.
        with pytest.raises(Ended, match="exit code 3"):
            a.turn()


def test_a_worker_that_is_killed_tells_by_which_signal() -> None:
    with worker(fakes.counting, path=fakes.FOLDER, start=0) as one:
        os.kill(one.pid, signal.SIGKILL)
        with pytest.raises(Ended, match="SIGKILL"):
            one.turn()


def test_a_worker_that_cannot_prepare() -> None:
    with (
        pytest.raises(Ended, match=r"exit code 1\n(.*\n)*TypeError: .*unexpected"),
        worker(fakes.counting, path=fakes.FOLDER, unexpected=1),
    ):
        pass


def test_outside_of_its_turn_a_worker_gets_no_processor_time() -> None:
    """Two, each with a thread that never rests, and of each only its own turns count."""
    with (
        worker(fakes.spinning, path=fakes.FOLDER) as a,
        worker(fakes.spinning, path=fakes.FOLDER) as b,
    ):
        assert state(a.pid) == state(b.pid) == "T"
        for _ in range(3):
            before, seen = processor_ticks(a.pid), a.turn()
            assert a.turn() > seen  # The thread does spin.
            held = processor_ticks(a.pid)
            assert held > before
            b.turn()
            time.sleep(0.1)
            assert processor_ticks(a.pid) == held and state(a.pid) == "T"


def test_no_process_is_left(tmp_path: Path) -> None:
    with worker(fakes.spinning, path=fakes.FOLDER) as one:
        pass
    assert state(one.pid) == ""
    with worker(fakes.spinning, path=fakes.FOLDER) as two:
        two.end()
        assert state(two.pid) == ""
    with (
        pytest.raises(KeyboardInterrupt),
        worker(fakes.spinning, path=fakes.FOLDER) as three,
    ):
        raise KeyboardInterrupt
    assert state(three.pid) == ""


def test_ctrl_c_while_a_worker_prepares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "pid"

    def interrupted(process: subprocess.Popen[bytes], log: object) -> Worker:
        assert eventually(lambda: file.is_file() and file.read_text() != "")
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmarks.turns.Worker", interrupted)
    with (
        pytest.raises(KeyboardInterrupt),
        worker(fakes.sleepless, path=fakes.FOLDER, file=str(file)),
    ):
        pass
    assert state(int(file.read_text())) == ""


@pytest.mark.parametrize("end", ["os._exit(0)", "os.kill(os.getpid(), 9)", "raise OSError"])
def test_a_stopped_worker_ends_with_its_parent(end: str) -> None:
    root = str(Path(__file__).parents[1])
    code = PARENT.format(tests=fakes.FOLDER, root=root, end=end)
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    pid = int(made.stdout)
    assert eventually(lambda: state(pid) in ("", "Z"))
