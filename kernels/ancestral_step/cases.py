"""The calls at which ancestral_step is tested and measured."""

from __future__ import annotations

import math
from typing import NamedTuple


class Case(NamedTuple):
    """One call. `draws`: the noise is drawn inside from the counter, not read."""

    name: str
    shape: tuple[int, ...]  # [B, C, *spatial]
    prediction: str = "epsilon"
    variance: str = "fixed_large"
    clip: float | None = 1.0
    draws: bool = False

    def bytes_moved(self, itemsize: int = 4) -> int:
        """The least traffic: x, output, noise read once; x_prev and x_0 written once."""
        outputs = 2 if self.variance in ("learned", "learned_range") else 1
        return itemsize * math.prod(self.shape) * (3 + outputs + (not self.draws))


CASES = (
    Case("mnist", (8, 1, 28, 28), variance="fixed_small"),
    Case("cifar", (4, 3, 32, 32)),
    Case("cifar_draws", (4, 3, 32, 32), draws=True),
    Case("no_clip", (2, 3, 16, 16), clip=None),
    Case("wide_clip", (2, 3, 16, 16), clip=2.5),
    Case("sample", (2, 3, 16, 16), prediction="sample"),
    Case("v_prediction", (2, 3, 16, 16), prediction="v_prediction"),
    Case("previous_sample", (2, 3, 16, 16), prediction="previous_sample"),
    Case("learned", (2, 3, 16, 16), variance="learned"),
    Case("learned_range", (2, 3, 16, 16), variance="learned_range"),
    Case("learned_range_draws", (2, 3, 9, 5), variance="learned_range", draws=True),
    Case("odd", (3, 1, 7, 11)),
    Case("odd_draws", (3, 1, 7, 11), draws=True),
    Case("one_element", (1, 1, 1, 1)),
    Case("one_dimensional", (2, 5, 33)),
    Case("empty_batch", (0, 3, 8, 8)),
    Case("many_blocks", (3, 3, 250, 251), draws=True),
)
