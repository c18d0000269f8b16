"""What the tensors of a recorded step are for the program: most are not there until they must be.

Map       a feature map in memory, channels last
Feature   what an instruction will write: until then rows, residual and divisor may be added
Read      a map, or two joined by channels, as an instruction reads it: normalised, activated,
          doubled, padded
Row       numbers that all pixels of a sample share
InOrder   a tensor in torch's order, times a factor plus an offset
Divided   a map that is divided by a number of each sample or step
Constant  a tensor that the step holds: a weight, a table, a buffer
Index     the step's index
Missing   what the program has no instruction for; refused when something reads it
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from fastddpm.ops.program_abi import Arguments, Output

# B, C, H, W
Shape = tuple[int, int, int, int]


@dataclass(eq=False)
class Map:
    """Pixels of ``channels`` floats, ``stride`` floats apart, from ``address`` on.

    producer: the instruction that writes it as its output ``y``; None: another. statistics: where
    its statistics are, if anywhere.
    """

    address: int
    stride: int
    shape: Shape
    producer: Arguments | None = None
    statistics: int | None = None

    @property
    def channels(self) -> int:
        return self.shape[1]


@dataclass(frozen=True)
class Row:
    """Sample b at step i reads ``count`` floats from address + 4 (b sample_stride + i step_stride).

    plus_one: stands for 1 + these numbers.
    """

    address: int
    count: int
    sample_stride: int
    step_stride: int
    plus_one: bool = False

    def columns(self, begin: int, end: int) -> Row:
        """Numbers begin, ..., end - 1 of it."""
        address = self.address + 4 * begin
        return Row(address, end - begin, self.sample_stride, self.step_stride, self.plus_one)

    def follows(self, other: Row) -> bool:
        """Whether it lies right behind the other."""
        return self == Row(
            other.address + 4 * other.count, other.count, other.sample_stride, other.step_stride
        )


@dataclass(eq=False)
class Feature:
    """(made + bias + row + residual) / divisor, where ``make`` gives the instruction that writes to
    an output, and emits those that it needs before.

    readers: how many operations read it. written: the map, once it is there.
    """

    shape: Shape
    make: Callable[[Output], Arguments]
    bias: int | None = None
    row: Row | None = None
    residual: Value | None = None
    divisor: float = 1.0
    readers: int = 0
    written: Map | None = None

    @property
    def is_open(self) -> bool:
        """Whether its one reader may still add to what is written."""
        return self.written is None and self.readers == 1 and self.divisor == 1


@dataclass(eq=False)
class Norm:
    """GroupNorm of what is read; with scale and shift y (1 + scale) + shift. scale is the Row of
    1 + scale. coefficients: where they are, once they are there."""

    groups: int
    eps: float
    weight: int | None
    bias: int | None
    scale: Row | None = None
    shift: Row | None = None
    coefficients: int | None = None


@dataclass(eq=False)
class Read:
    """parts, normalised, then activated, then doubled (nearest neighbour) or padded.

    padded: rows of zeros below and columns to the right. written: the same as a map, once it is
    there.
    """

    parts: tuple[Map, ...]
    norm: Norm | None = None
    silu: bool = False
    doubled: bool = False
    padded: tuple[int, int] = (0, 0)
    written: Map | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it is its parts as they lie in memory."""
        return self.has_no_resampling and self.norm is None and not self.silu

    @property
    def has_no_resampling(self) -> bool:
        return not self.doubled and self.padded == (0, 0)

    @property
    def channels(self) -> int:
        return sum(part.channels for part in self.parts)

    @property
    def source_size(self) -> tuple[int, int]:
        """Height and width of the parts."""
        return self.parts[0].shape[2:]

    @property
    def shape(self) -> Shape:
        """Without the padding."""
        height, width = (size * (2 if self.doubled else 1) for size in self.source_size)
        return self.parts[0].shape[0], self.channels, height, width


@dataclass(eq=False)
class InOrder:
    """tensor factor + offset; the tensor is float32 and contiguous. written: the same as a map.
    gone: whether the tensor holds other numbers by now."""

    tensor: Tensor
    factor: float = 1.0
    offset: float = 0.0
    written: Map | None = None
    gone: bool = False


@dataclass(frozen=True)
class Divided:
    """The map divided by a row of one number."""

    map: Read
    divisor: Row


@dataclass(frozen=True)
class Constant:
    tensor: Tensor


@dataclass(frozen=True)
class Index:
    pass


@dataclass(frozen=True)
class Missing:
    """operation: which one, and where."""

    operation: str


Value = Feature | Read | Row | InOrder | Divided | Constant | Index | Missing
