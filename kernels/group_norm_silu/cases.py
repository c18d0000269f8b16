"""The calls at which group_norm_silu is tested and measured."""

from __future__ import annotations

from typing import NamedTuple


class Case(NamedTuple):
    """One call. `modulation` is "none", "row" or "film"."""

    name: str
    shape: tuple[int, ...]
    num_groups: int
    modulation: str = "none"
    activation: str | None = "silu"

    def bytes_moved(self, itemsize: int = 4) -> int:
        """The least traffic of the call: every input read once, the output written once."""
        numel = 1
        for size in self.shape:
            numel *= size
        batch, channels = self.shape[:2]
        rows = {"none": 0, "row": 1, "film": 2}[self.modulation]
        return itemsize * (2 * numel + 2 * channels + rows * batch * channels)


CASES = (
    Case("cifar_32", (2, 128, 32, 32), 32, "row"),
    Case("cifar_16_film", (2, 256, 16, 16), 32, "film"),
    Case("cifar_4", (3, 512, 4, 4), 32),
    Case("mnist_28", (2, 32, 28, 28), 8, "row"),
    Case("odd", (3, 12, 5, 7), 3, "row"),
    Case("one_group", (1, 6, 9, 1), 1, "film", None),
    Case("empty_batch", (0, 8, 4, 4), 4),
    Case("one_dimensional", (2, 16, 33), 4, "row"),
    Case("three_dimensional", (1, 8, 3, 4, 5), 2),
)
