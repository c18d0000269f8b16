"""How an image's numbers are cut into blocks, and how a block's candidate stands in the file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from fastddpm.codec.channel import BLOCK_BITS, Place
from fastddpm.codec.container import Header
from fastddpm.codec.entropy import Reader, Writer
from fastddpm.codec.index_code import EDGES, SIZES, bin_of, bin_probabilities
from fastddpm.codec.levels import LOWEST, block_count, highest, level_probabilities, nominal

# Of the stages that send states every so many end with a check of all before.
CHECK_EVERY = 8


class Block(NamedTuple):
    """Elements start to stop of an image's rotated numbers."""

    place: Place
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


def blocks(header: Header, stage: int, image: int, size: int, level: int) -> Iterator[Block]:
    """The blocks of an image's stage, of nearly equal size."""
    count = block_count(level)
    for b in range(count):
        place = Place(header.seed, stage, image, b)
        yield Block(place, b * size // count, (b + 1) * size // count)


def top_level(size: int) -> int:
    """The highest level for images of so many numbers."""
    return highest(size, 1 << BLOCK_BITS)


def ends_with_check(stage: int, steps: int) -> bool:
    """Whether a check follows the stage."""
    return stage % CHECK_EVERY == 0 or stage == steps


def put_level(writer: Writer, level: int, expected: float, top: int) -> None:
    writer.put("levels", level - LOWEST, level_probabilities(expected, top))


def get_level(reader: Reader, expected: float, top: int) -> int:
    return reader.get(level_probabilities(expected, top)) + LOWEST


def put_index(writer: Writer, index: int, level: int, target: float) -> None:
    """K of a block, from 1."""
    b = bin_of(index)
    writer.put("blocks", b, bin_probabilities(nominal(level, target)))
    writer.put_uniform("blocks", index - int(EDGES[b]), int(SIZES[b]))


def get_index(reader: Reader, level: int, target: float) -> int:
    b = reader.get(bin_probabilities(nominal(level, target)))
    return int(EDGES[b]) + reader.get_uniform(int(SIZES[b]))
