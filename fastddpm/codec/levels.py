"""How much an image's step tells, roughly: the one number a step sends besides its candidates.

    level      ... -2   -1    0     1     2     3     4     5        target: bits of a block
    blocks          1    1    1     2     3     4     6     8  ...
    nominal I     T/4  T/2    T     T     T     T     T     T        of a block, what codes K

A level is sent under a logistic law around what the image's last steps and the other images of this
step make likely.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

LOWEST = -10
# Where the first step, x_T, is expected.
_START = -8
# The law's scale, a floor for levels far away, and the other images' weight in what is expected:
# the best of a few on MNIST.
_SCALE, _SPARE, _OTHERS = 0.4, 1e-4, 0.25
_GRID = 2.0**20
# A block may exceed the target by this much before there is one more.
_SLACK = 1.15
# But never more than this, in bits: a search takes exponentially long.
_MOST = 16.0


def block_count(level: int) -> int:
    """1 up to level 0, then 2, 3, 4, 6, 8, 12, ..."""
    if level <= 0:
        return 1
    octave, half = divmod(level + 1, 2)
    return 3 << (octave - 1) if half else 1 << octave


def nominal(level: int, target: float) -> float:
    """What a block of the level is taken to carry, in bits."""
    return float(target * 2.0 ** min(level, 0))


@cache
def highest(size: int, most_blocks: int) -> int:
    """The last level whose blocks are not empty, nor too many."""
    level = 0
    while block_count(level + 1) <= min(size, most_blocks):
        level += 1
    return level


def level_of(bits: float, target: float, top: int) -> int:
    """The level for an image's step of so many bits; ValueError if even ``top`` is too low."""
    allowed = min(target * _SLACK, _MOST)
    if bits <= allowed:
        octaves = round(math.log2(max(bits, 1e-9) / target))
        return max(LOWEST, min(octaves, 0))
    for level in range(1, top + 1):
        if bits <= block_count(level) * allowed:
            return level
    raise ValueError(
        f"a step of this chain tells {bits:.0f} bits of an image, more than {block_count(top)} "
        f"blocks of {target:g} bits can carry: give more steps, or smaller ones"
    )


@cache
def level_probabilities(expected: float, top: int) -> NDArray[np.float64]:
    """Of the levels LOWEST to top, float64 summing to 1: logistic around the one expected."""
    edges = np.arange(LOWEST, top + 2) - 0.5 - expected
    law = np.diff(1 / (1 + np.exp(-edges / _SCALE))) + _SPARE
    # So that machines whose exp differs in the last bit still agree.
    rounded = np.maximum(np.round(law / law.sum() * _GRID), 1)
    return np.asarray(rounded / rounded.sum())


class Levels:
    """The levels sent so far; both sides keep them alike."""

    def __init__(self) -> None:
        self._steps: list[list[int]] = []

    def begin_step(self) -> None:
        """The next step's levels follow."""
        self._steps.append([])

    def expected(self) -> float:
        """Of the next image, in eighths."""
        *before, now = self._steps
        j, last = len(now), before[-2:]
        if not last:
            return _eighths(sum(now) / j) if j else _START
        if not j:
            return last[-1][0]
        others = sum(now) / j
        # Where the image was of late, moved as the others have.
        own = sum(step[j] for step in last) / len(last)
        moved = own + others - sum(sum(step[:j]) for step in last) / (j * len(last))
        return _eighths(_OTHERS * others + (1 - _OTHERS) * moved)

    def add(self, level: int) -> None:
        """What the next image's turned out to be."""
        self._steps[-1].append(level)


def _eighths(value: float) -> float:
    return round(8 * value) / 8
