"""The calls at which q_sample is tested and measured."""

from __future__ import annotations

import math
from typing import NamedTuple


class Case(NamedTuple):
    """One call: the shape [B, C, *spatial], the seed and the first sample index."""

    name: str
    shape: tuple[int, ...]
    seed: int = 0
    first_index: int = 0
    step_each: bool = False  # a step word for each sample, not one for all

    def bytes_moved(self, itemsize: int = 4) -> int:
        """The least traffic: x_0 read once, x_t and the noise written once."""
        return 3 * itemsize * math.prod(self.shape)


CASES = (
    Case("cifar", (4, 3, 32, 32)),
    Case("mnist", (3, 1, 28, 28), seed=1, first_index=100),
    Case("odd", (3, 3, 7, 11), seed=2),
    Case("step_each", (3, 3, 8, 8), seed=3, step_each=True),
    Case("one_element", (2, 1, 1), seed=4),
    Case("one_dimensional", (2, 130), seed=5),
    Case("big_seed", (2, 3, 8, 9), seed=2**64 - 1),
    Case("big_index", (4, 3, 8, 9), first_index=2**32 - 2),
    Case("biggest_index", (2, 3, 8, 9), first_index=2**63 - 3),
    Case("empty_batch", (0, 3, 8, 8)),
    Case("empty_sample", (2, 3, 0, 8)),
)
