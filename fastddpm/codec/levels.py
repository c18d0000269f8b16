"""How much an image's step tells, roughly: the one number a step sends besides its candidates.

    level      ... -2   -1    0     1     2     3     4     5        target: bits of a block
    blocks          1    1    1     2     3     4     6     8  ...
    nominal I     T/4  T/2    T     T     T     T     T     T        of a block, what codes K

A level is sent under a two-sided geometric law around what the image's last step and the other
images of this step make likely.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

LOWEST = -10
# Where the first step, x_T, is expected.
_START = -8
# A block may exceed the target by this much before there is one more.
_SLACK = 1.15


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
    if bits <= target * _SLACK:
        octaves = round(math.log2(max(bits, 1e-9) / target))
        return max(LOWEST, min(octaves, 0))
    for level in range(1, top + 1):
        if bits <= block_count(level) * target * _SLACK:
            return level
    raise ValueError(
        f"a step of this chain tells {bits:.0f} bits of an image, more than {block_count(top)} "
        f"blocks of {target:g} bits can carry: give more steps, or smaller ones"
    )


def level_probabilities(expected: int, top: int) -> NDArray[np.float64]:
    """Of the levels LOWEST to top, float64 summing to 1; all exact powers of two before that."""
    distance = np.abs(np.arange(LOWEST, top + 1) - expected)
    law = 4.0**-distance + 2.0**-distance / 64
    return np.asarray(law / law.sum())


class Levels:
    """The levels sent so far; both sides keep them alike."""

    def __init__(self) -> None:
        self._before: list[int] = []
        self._now: list[int] = []

    def begin_step(self) -> None:
        """The next step's levels follow."""
        self._before, self._now = self._now, []

    def expected(self) -> int:
        """Of the next image."""
        j = len(self._now)
        own = self._before[j] if self._before else _START
        if not j:
            return own
        others = sum(self._now) / j
        # The image's own last level, moved as the others have.
        moved = own + (others - sum(self._before[:j]) / j if self._before else 0.0)
        return round((others + moved) / 2) if self._before else round(others)

    def add(self, level: int) -> None:
        """What the next image's turned out to be."""
        self._now.append(level)
