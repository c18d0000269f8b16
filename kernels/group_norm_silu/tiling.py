"""Which tile a program of the GroupNorm kernels holds in its registers, and launches over it.

A tile is [positions, channels] of one sample, both powers of two, its channels a block of whole
groups. It depends on the shape of one sample alone, never on the batch: so does the order of the
sums, and a sample's result is the same bits in every batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from fastddpm.kernels.common.channels_last import VECTOR_BYTES
from fastddpm.kernels.common.launch import Launch

# Float32 values that a thread holds, by the size of an element in memory. 64 leave room for the
# addresses in the 128 registers that let two programs of 8 warps run; wide elements come in twice
# as many loads, whose registers are those of the values.
ELEMENTS_A_THREAD = {2: 64, 4: 32}
MOST_ELEMENTS_A_THREAD = 64
# Forward, a program on a small map takes as long as its one load: threads with less to do are done
# sooner (H100, 8×8, 512 channels joined: 2.7 µs for 3.4 with one image, 22.8 for 23.9 with 256).
SMALL_POSITIONS, SMALL_ELEMENTS_A_THREAD = 64, 32
MOST_WARPS = 16
# Memory moves in sectors: 16 half-precision channels. Narrower blocks waste bandwidth, and sectors
# that two blocks share cost more than a second reading (H100, 32×32, 384 channels joined, bfloat16:
# one pass over 24 channels 8.5, 23.8 and 429 µs with 1, 16 and 256 images, split 7.3, 24.0, 317).
SECTOR_BYTES = 32
LEAST_CHANNELS = 16
MOST_CHANNELS = 64
# Up to here all positions of a block fit one program: 1024 positions × 16 channels are 8 warps.
ONE_PASS_POSITIONS = 1024
SPLIT_ELEMENTS = 16384
# The partial results that each program merges first: forward two numbers a group; backward two a
# channel, which at 64 would be as many bytes as the program's own tile.
MOST_CHUNKS = {1: 64, 2: 8}


@dataclass(frozen=True)
class Tile:
    """block: channels of a program, in whole groups if it sums. positions, channels, groups: powers
    of two that hold them. fold: neighbouring channels of one group in one thread."""

    block: int
    positions: int
    channels: int
    groups: int
    fold: int
    warps: int

    def constants(self, positions: int, tiles: int = 1) -> dict[str, int | bool]:
        """A kernel's constants, where this many tiles cover the positions of a sample.

        EXACT: there is nothing to mask.
        """
        covered = positions == self.positions * tiles
        return {
            "BLOCK": self.block,
            "TILE_P": self.positions,
            "TILE_C": self.channels,
            "TILE_G": self.groups,
            "FOLD": self.fold,
            "EXACT": covered and self.block == self.channels,
        }


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(n - 1, 0).bit_length()


def one_pass_tile(
    positions: int, channels: int, num_groups: int, itemsize: int, live: int = 1
) -> Tile | None:
    """The tile of a whole block of groups, or None if it does not fit the registers.

    live: how many values of an element a thread holds at once, 1 forward and 2 backward.
    """
    if positions > ONE_PASS_POSITIONS:
        return None
    rows = power_of_two(positions)
    a_thread = ELEMENTS_A_THREAD[itemsize] // live
    if live == 1 and rows <= SMALL_POSITIONS:
        a_thread = SMALL_ELEMENTS_A_THREAD
    elements = a_thread * 32
    at_four_warps = 4 * elements // rows
    most = MOST_WARPS * 32 * MOST_ELEMENTS_A_THREAD // live // rows
    tile = _tile(rows, (at_four_warps, most), channels, num_groups, itemsize, elements)
    shared = tile.block < channels and tile.block * itemsize % SECTOR_BYTES != 0
    return None if tile.channels > most or (shared and live == 1) else tile


def split_tile(
    positions: int, channels: int, num_groups: int, itemsize: int, live: int = 1
) -> tuple[Tile, int, int]:
    """The tile, how many of them a chunk has, and how many chunks a sample has."""
    elements = ELEMENTS_A_THREAD[itemsize] // live * 32
    wanted = (MOST_CHANNELS, MOST_CHANNELS)
    wide = _tile(1, wanted, channels, num_groups, itemsize, elements)
    rows = max(1, min(SPLIT_ELEMENTS // live // wide.channels, power_of_two(positions)))
    tile = _tile(rows, wanted, channels, num_groups, itemsize, elements)
    tiles = -(-positions // rows)
    per_chunk = -(-tiles // MOST_CHUNKS[live])
    return tile, per_chunk, -(-tiles // per_chunk)


def without_padding(tile: Tile, channels: int, group: int, itemsize: int) -> Tile:
    """The tile of a kernel that sums nothing: its block may cut groups, so that no lane is idle."""
    width = min(tile.channels, channels & -channels)
    if tile.block == tile.channels or width * itemsize < SECTOR_BYTES:
        return tile
    touched = ((first + width - 1) // group - first // group for first in range(0, channels, width))
    return replace(
        tile,
        block=width,
        channels=width,
        groups=power_of_two(max(touched) + 1),
        warps=max(tile.warps * width // tile.channels, 1),
    )


def launch_over(
    kernel: Any,
    chunks: int,
    tile: Tile,
    arguments: dict[str, Any],
    constants: dict[str, Any],
    *,
    writes: tuple[str, ...],
) -> Launch:
    """A program for each block of channels of each chunk (of all samples).

    Of the arguments and constants each kernel takes those that it has.
    """
    channels = constants["CHANNELS"]
    return Launch(
        kernel,
        (chunks * (channels // tile.block),),
        {name: arguments[name] for name in kernel.arg_names if name in arguments},
        {name: constants[name] for name in kernel.arg_names if name in constants},
        num_warps=tile.warps,
        writes=tuple(name for name in writes if arguments[name] is not None),
    )


def _tile(
    rows: int,
    wanted: tuple[int, int],
    channels: int,
    num_groups: int,
    itemsize: int,
    elements: int,
) -> Tile:
    """wanted: channels, and up to how many if that makes whole sectors."""
    group = channels // num_groups
    few, many = (min(count, MOST_CHANNELS) for count in wanted)
    block = group * _groups_of_block(group, num_groups, itemsize, few, many)
    padded = power_of_two(block)
    even = group & (group - 1) == 0
    return Tile(
        block=block,
        positions=rows,
        channels=padded,
        groups=padded // group if even else power_of_two(block // group),
        fold=min(group & -group, VECTOR_BYTES // itemsize),
        warps=min(max(power_of_two(rows * padded // elements), 1), MOST_WARPS),
    )


def _groups_of_block(group: int, num_groups: int, itemsize: int, wanted: int, most: int) -> int:
    """A divisor of num_groups: blocks of whole vectors, as many channels as wanted if they fit; of
    whole sectors, if that takes no more than ``most`` channels."""
    fits = [
        k
        for k in range(1, num_groups + 1)
        if num_groups % k == 0
        and (k == num_groups or k * group * itemsize % VECTOR_BYTES == 0)
        and k * group >= min(LEAST_CHANNELS, num_groups * group)
    ]
    within = [k for k in fits if k * group <= wanted]
    found = within[-1] if within else fits[0]
    whole = [
        k
        for k in fits
        if k >= found and k * group <= most and k * group * itemsize % SECTOR_BYTES == 0
    ]
    return whole[0] if whole else found
