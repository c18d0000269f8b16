"""One network and batch: who agrees with float64, each library's best setting, then the rounds.

    check    the output of every setting, before anything is timed
    trial    a few rounds of a library's settings; its fastest goes on
    rounds   A B A B ...: those that went on take turns

Each setting is a worker (turns.py), and a turn counts if it had the whole machine (steady.py). What
is reported are the times of the rounds alone: a setting that was lucky in the trial gains nothing
by it.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import fastddpm
from benchmarks import timing
from benchmarks.cpu import calls, work
from benchmarks.cpu.contenders import Contender, Setup
from benchmarks.cpu.steady import Steady
from benchmarks.turns import Ended, Turns, Worker, interleaved, worker

TRIAL_ROUNDS = 3


class Disagreement(RuntimeError):
    """A contender's output is wrong: its time would mean nothing."""


@dataclass
class Ready:
    """A contender that is prepared and right."""

    contender: Contender
    turns: Turns
    relative_error: float


@dataclass
class Trial:
    """chosen: by library its fastest setting, whose worker is ready for the rounds.
    setting_ms: by label the times of all settings. absent: by label why the others have none."""

    chosen: dict[str, Ready] = field(default_factory=dict)
    setting_ms: dict[str, Any] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)


def best_settings(
    setup: Setup, contenders: Iterable[Contender], clock: str, running: ExitStack, steady: Steady
) -> Trial:
    """Try one library's settings after the other's. Their workers end with ``running``; those that
    are not chosen end here, as they would hold the memory of all settings of all libraries.

    clock: of timing.CLOCKS. Raises Disagreement.
    """
    trial = Trial()
    libraries: dict[str, list[Contender]] = {}
    for contender in contenders:
        libraries.setdefault(contender.name, []).append(contender)
    for name, settings in libraries.items():
        workers = _started(setup, settings, clock, running, trial.absent)
        times, ended, _ = interleaved(workers, TRIAL_ROUNDS, steady)
        trial.absent |= ended
        trial.setting_ms |= {label: timing.summary(samples) for label, samples in times.items()}
        best = min(times, key=lambda label: statistics.median(times[label]), default=None)
        for one in settings:
            if one.label == best:
                trial.chosen[name] = Ready(one, workers[best], workers[best].found)
            elif one.label in workers:
                workers[one.label].end()
    return trial


def _started(
    setup: Setup,
    contenders: Iterable[Contender],
    clock: str,
    running: ExitStack,
    absent: dict[str, str],
) -> dict[str, Worker]:
    """By label those that run here, all of them right; why the others do not goes to ``absent``."""
    workers = {}
    for one in contenders:
        arguments: dict[str, Any] = {"setup": setup.as_json(), "contender": one.as_json()}
        try:
            process = worker(calls.prepared, path=one.path, **arguments, clock=clock)
            own = running.enter_context(process)
        except Ended as error:
            absent[one.label] = str(error)
            continue
        require_agreement(one, own.found)
        workers[one.label] = own
    return workers


def require_agreement(contender: Contender, error: float) -> None:
    """Raises Disagreement for a relative error above the contender's tolerance."""
    if not error <= contender.tolerance:
        raise Disagreement(
            f"{contender.label}: relative error {error:.1e} against float64, more than "
            f"{contender.tolerance:.0e}"
        )


def measured(
    setup: Setup, chosen: Mapping[str, Ready], steady: Steady, rounds: int
) -> dict[str, Any]:
    """Figures of every library, how many times faster ours are, and who ended before the last
    round. Raises Ended if that is one of ours."""
    turns = {name: one.turns for name, one in chosen.items()}
    times, ended, disturbed = interleaved(turns, rounds, steady)
    ours = [name for name, one in chosen.items() if one.contender.is_ours]
    require(ours, times, ended)
    flop = setup.batch * work.asked(fastddpm.from_pretrained(setup.folder)[0])
    machine = steady.figures()
    ceiling = machine["peak_flop_per_second"]["median"]
    return {
        "flop": flop,
        **machine,
        "absent": ended,
        "contenders": {
            name: {
                "setting": chosen[name].contender.setting,
                "relative_error": chosen[name].relative_error,
                "disturbed_turns": disturbed[name],
                **speed(samples, setup.batch, flop, ceiling),
            }
            for name, samples in times.items()
        },
        **compared(times, ours),
    }


def require(names: Iterable[str], present: Mapping[str, Any], absent: Mapping[str, str]) -> None:
    """Raises Ended, with the reason, where one of the names is not present."""
    for name in names:
        if name not in present:
            raise Ended(f"{name}: {absent.get(name, 'is absent')}")


def speed(call_ms: list[float], batch: int, flop: int, peak: float) -> dict[str, Any]:
    """Times, and the network's FLOP in the median time. The share of the peak is of those, too: an
    algorithm that multiplies less than the network asks for can exceed 1."""
    summary = timing.summary(call_ms)
    rate = flop / (summary["median"] / 1e3)
    return {
        "call_ms": summary,
        "images_per_second": 1e3 * batch / summary["median"],
        "effective_flop_per_second": rate,
        "effective_share_of_peak": rate / peak,
    }


def compared(times: Mapping[str, list[float]], ours: Iterable[str]) -> dict[str, Any]:
    """How many times faster each of ours is than each rival, round by round, and which rival is
    the best."""
    ours = list(ours)
    rivals = [name for name in times if name not in ours]
    best = min(rivals, key=lambda name: timing.summary(times[name])["median"], default=None)
    faster = {own: {name: timing.ratio(times[own], times[name]) for name in rivals} for own in ours}
    return {"best_rival": best, "times_faster_than": faster}
