"""Times of contenders that take turns: A B A B ..., medians, spreads and ratios.

Taking turns lets clocks, temperature and neighbours meet all of them alike, so the ratio of
neighbouring times holds where the times themselves drift. Contenders with threads of their own take
them in processes of their own: benchmarks/turns.py.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

# Milliseconds that a call took.
Timer = Callable[[Callable[[], object]], float]
# Seconds of a contender's turn, at least: many calls of a small network, one of a large.
TURN = 0.2


def wall_milliseconds(call: Callable[[], object]) -> float:
    """Of the clock on the wall; see ``_mean``."""
    return _mean(call, time.perf_counter)


def processor_milliseconds(call: Callable[[], object]) -> float:
    """Of all processors that this process has used; see ``_mean``. Neighbours on a busy machine do
    not lengthen it, but threads that wait by spinning do: it means something for one thread."""
    return _mean(call, time.process_time)


def _mean(call: Callable[[], object], clock: Callable[[], float]) -> float:
    """Milliseconds of as many calls as fill a turn, after one that finds the caches and the threads
    as the contender before left them."""
    call()
    count, begin = 0, clock()
    while True:
        call()
        count, passed = count + 1, clock() - begin
        if passed >= TURN:
            return 1e3 * passed / count


CLOCKS: dict[str, Timer] = {"wall": wall_milliseconds, "processor": processor_milliseconds}
SECONDS = {"wall": time.perf_counter, "processor": time.process_time}


def cuda_milliseconds(call: Callable[[], object]) -> float:
    """From before the call to after its last kernel, by events on the current stream."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end))


def interleaved(
    calls: Mapping[str, Callable[[], object]], rounds: int, timer: Timer
) -> dict[str, list[float]]:
    """The times of each call, one a round; every round runs all of them in order."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(timer(call))
    return times


def summary(samples: list[float]) -> dict[str, Any]:
    """Median, quartiles and the samples themselves.

    Raises ValueError for no samples.
    """
    if not samples:
        raise ValueError("expected at least one sample, got none")
    low, high = _quartiles(samples)
    return {"median": statistics.median(samples), "low": low, "high": high, "samples": samples}


def ratio(own: list[float], other: list[float]) -> dict[str, Any]:
    """How many times faster ``own`` is, round by round: other / own."""
    if len(own) != len(other):
        raise ValueError(f"expected as many rounds of both, got {len(own)} and {len(other)}")
    return summary([b / a for a, b in zip(own, other, strict=True)])


def _quartiles(samples: list[float]) -> tuple[float, float]:
    if len(samples) == 1:
        return samples[0], samples[0]
    quarters = statistics.quantiles(samples, n=4, method="inclusive")
    return quarters[0], quarters[2]
