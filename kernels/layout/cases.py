"""The calls at which layout is tested and measured."""

from __future__ import annotations

from typing import NamedTuple


class Case(NamedTuple):
    """One call, in either direction. divided: by a number of each "step", or of each "sample" at
    each step."""

    name: str
    batch: int
    channels: int
    pixels: int
    factor: float = 1.0
    offset: float = 0.0
    divided: str | None = None

    def bytes_moved(self, stride: int = 16) -> int:
        """The traffic of both sides; of a map, whole pixels of `stride` floats."""
        return 4 * self.batch * self.pixels * (self.channels + stride)


CASES = (
    Case("cifar", 4, 3, 1024),
    Case("cifar_learned", 2, 6, 1024),
    Case("mnist", 3, 1, 784),
    Case("uncentred", 2, 3, 256, factor=2.0, offset=-1.0),
    Case("divided", 2, 3, 100, factor=0.3, offset=0.1, divided="step"),
    Case("divided_by_samples", 3, 3, 300, factor=0.3, offset=0.1, divided="sample"),
    Case("odd", 3, 5, 77, divided="sample"),
    Case("wide", 2, 37, 49),
    Case("one", 2, 1, 1),
)
