"""A contender's call of the network: its error against float64, then its turns.

Here a worker prepares it; nothing of this file needs more than one process.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import timing
from benchmarks.cpu import networks
from benchmarks.cpu.contenders import Call, Contender, Setup
from benchmarks.worker import Prepared

STEPS = 1000


def prepared(setup: dict[str, Any], contender: dict[str, Any], clock: str) -> Prepared:
    """For a worker: the relative error of its output, and turns in milliseconds a call."""
    own, timer = Setup.from_json(setup), timing.CLOCKS[clock]
    torch.set_num_threads(own.threads)
    call, error = checked(own, Contender.from_json(contender))
    chain = falling(own, call)
    return error, lambda: timer(chain)


def checked(setup: Setup, contender: Contender) -> tuple[Call, float]:
    """A contender's call, and its relative error against what ``networks.write_expected`` left."""
    x, t, y = networks.expected(setup.folder, setup.batch)
    call = contender.call(setup)
    return call, agreement(call(x, t), y)


def agreement(output: Any, expected: Tensor) -> float:
    """|output − expected| / |expected| in the Euclidean norm; infinite for another shape."""
    numbers = output.numpy() if isinstance(output, Tensor) else output
    given = torch.from_numpy(np.array(numbers, dtype=np.float64))
    if given.shape != expected.shape:
        return float("inf")
    return float((given - expected).norm() / expected.norm())


def falling(setup: Setup, call: Call) -> Callable[[], object]:
    """The call without arguments, at falling timesteps as a chain has them."""
    x, _, _ = networks.expected(setup.folder, setup.batch)
    times = itertools.cycle([torch.full((setup.batch,), t) for t in reversed(range(STEPS))])
    return lambda: call(x, next(times))
