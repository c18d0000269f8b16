"""One network and batch: who agrees with float64, each library's best setting, then the rounds.

    check    the output of every setting, before anything is timed
    trial    a few rounds of all settings; the fastest of each library goes on
    rounds   A B A B ...: those that went on and the machine's peak take turns

What is reported are the times of the rounds alone: a setting that was lucky in the trial gains
nothing by it.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastddpm
from benchmarks import timing
from benchmarks.cpu import networks, work
from benchmarks.cpu.contenders import Call, Contender, Setup
from benchmarks.cpu.peak import Peak

TRIAL_ROUNDS = 3
STEPS = 1000


class Disagreement(RuntimeError):
    """A contender's output is wrong: its time would mean nothing."""


@dataclass
class Ready:
    """A contender that is prepared and right."""

    contender: Contender
    call: Call
    relative_error: float


def measured(
    setup: Setup,
    chosen: Mapping[str, Ready],
    rounds: int,
    peak: Callable[[], Peak],
    timer: timing.Timer = timing.wall_milliseconds,
) -> dict[str, Any]:
    """Figures of every library, and how many times faster ours are."""
    peaks: list[Peak] = []
    turns = chains(chosen, setup) | {"peak": lambda: peaks.append(peak())}
    times = timing.interleaved(turns, rounds, timer)
    del times["peak"]
    flop = setup.batch * work.asked(fastddpm.from_pretrained(setup.folder)[0])
    ceiling = timing.summary([one.flop_per_second for one in peaks])
    return {
        "flop": flop,
        "peak_flop_per_second": ceiling,
        "processor_share": timing.summary([one.processor_share for one in peaks]),
        "contenders": {
            name: {
                "setting": one.contender.setting,
                "relative_error": one.relative_error,
                **speed(times[name], setup.batch, flop, ceiling["median"]),
            }
            for name, one in chosen.items()
        },
        **compared(times, [name for name, one in chosen.items() if one.contender.is_ours]),
    }


def best_settings(
    setup: Setup, ready: Mapping[str, Ready], timer: timing.Timer = timing.wall_milliseconds
) -> tuple[dict[str, Ready], dict[str, Any]]:
    """By library its fastest setting in the trial; and the trial's times of all settings."""
    trial = timing.interleaved(chains(ready, setup), TRIAL_ROUNDS, timer)
    best: dict[str, Ready] = {}
    for label in sorted(ready, key=lambda label: statistics.median(trial[label])):
        best.setdefault(ready[label].contender.name, ready[label])
    in_order = dict.fromkeys(one.contender.name for one in ready.values())
    times = {label: timing.summary(samples) for label, samples in trial.items()}
    return {name: best[name] for name in in_order}, times


def prepared(
    setup: Setup, contenders: Iterable[Contender]
) -> tuple[dict[str, Ready], dict[str, str]]:
    """By label those that run here, all of them right; and by label why the others do not."""
    unet, _ = fastddpm.from_pretrained(setup.folder)
    x, t = networks.inputs(unet, setup.batch)
    expected = networks.exact(unet, x, t)
    ready, absent = {}, {}
    for contender in contenders:
        try:
            call = contender.make(setup)
        except ImportError as error:
            absent[contender.label] = str(error)
            continue
        error = agreement(call(x, t), expected)
        if not error <= contender.tolerance:
            raise Disagreement(
                f"{contender.label}: relative error {error:.1e} against float64, more than "
                f"{contender.tolerance:.0e}"
            )
        ready[contender.label] = Ready(contender, call, error)
    return ready, absent


def agreement(output: Any, expected: Tensor) -> float:
    """|output − expected| / |expected| in the Euclidean norm; infinite for another shape."""
    numbers = output.numpy() if isinstance(output, Tensor) else output
    given = torch.from_numpy(np.array(numbers, dtype=np.float64))
    if given.shape != expected.shape:
        return float("inf")
    return float((given - expected).norm() / expected.norm())


def chains(ready: Mapping[str, Ready], setup: Setup) -> dict[str, Callable[[], object]]:
    """Each as a call without arguments, at falling timesteps as a chain has them."""
    unet, _ = fastddpm.from_pretrained(setup.folder)
    x, _ = networks.inputs(unet, setup.batch)
    times = [torch.full((setup.batch,), t) for t in reversed(range(STEPS))]

    def chain(call: Call) -> Callable[[], object]:
        falling = itertools.cycle(times)
        return lambda: call(x, next(falling))

    return {name: chain(one.call) for name, one in ready.items()}


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
