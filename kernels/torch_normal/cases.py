"""The calls at which torch_normal is tested and measured.

There is no reference.py here: torch.randn is the specification.
"""

from __future__ import annotations

import math
from typing import NamedTuple


class Case(NamedTuple):
    """A draw of a shape from a generator of this seed, of which ``before`` numbers were taken."""

    name: str
    seed: int
    before: int
    shape: tuple[int, ...]

    def bytes_moved(self, itemsize: int = 4) -> int:
        """The least traffic: every normal written once."""
        return itemsize * math.prod(self.shape)


CASES = (
    Case("cifar", 0, 0, (16, 3, 32, 32)),
    Case("fewest", 1, 0, (16,)),
    Case("last_sixteen_anew", 2, 100, (17,)),
    Case("one_group_left", 3, 5, (3, 16)),
    Case("to_the_end_of_a_state", 4, 0, (624,)),
    Case("from_the_end_of_a_state", 5, 624, (2, 3, 28, 28)),
    Case("across_states", 6, 600, (1000,)),
    Case("many", 2**63 + 1, 1, (2**20 + 7,)),
)
