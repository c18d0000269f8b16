"""The calls at which normal is tested and measured.

There is no reference.py here: fastddpm/noise.py is the specification.
"""

from __future__ import annotations

import math
from typing import NamedTuple


class Case(NamedTuple):
    """One call: the seed, the first sample index, the batch, the step and one sample's shape."""

    name: str
    seed: int
    first_index: int
    batch: int
    step: int
    shape: tuple[int, ...]

    def bytes_moved(self, itemsize: int = 4) -> int:
        """The least traffic: every normal written once."""
        return itemsize * self.batch * math.prod(self.shape)


CASES = (
    Case("cifar", 0, 0, 16, 999, (3, 32, 32)),
    Case("mnist", 1, 100, 4, 1, (1, 28, 28)),
    Case("odd", 2, 3, 5, 17, (3, 7, 11)),
    Case("one_element", 3, 0, 3, 0, (1, 1, 1)),
    Case("one_dimensional", 4, 0, 2, 5, (130,)),
    Case("big_seed", 2**64 - 1, 0, 2, 999, (3, 8, 9)),
    Case("big_index", 5, 2**32 - 2, 4, 12, (3, 8, 9)),
    Case("biggest_index", 6, 2**63 - 3, 2, 12, (3, 8, 9)),
    Case("last_step", 7, 0, 2, 2**24 - 1, (2, 5)),
    Case("empty_batch", 8, 0, 0, 3, (3, 8, 8)),
    Case("empty_sample", 9, 0, 2, 3, (3, 0, 8)),
    Case("many_blocks", 10, 7, 3, 500, (3, 250, 251)),
)
