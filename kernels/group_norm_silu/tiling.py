"""Which tile a program of the GroupNorm kernels holds in its registers, and launches over it.

A tile is [positions, channels] of one sample, both powers of two. Its channels are a block of whole
groups, or one of the equal parts of such a block. All this depends on the shape of one sample
alone, never on the batch: so does the order of the sums, and a sample's result is the same bits in
every batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastddpm.kernels.common.channels_last import VECTOR_BYTES
from fastddpm.kernels.common.launch import Launch

# Float32 values that a thread holds, by the size of an element in memory. 64 leave room for the
# addresses in the 128 registers that let two programs of 8 warps run; wide elements come in twice
# as many loads, whose registers are those of the values.
ELEMENTS_A_THREAD = {2: 64, 4: 32}
MOST_ELEMENTS_A_THREAD = 64
MOST_WARPS = 16
THREADS_A_WARP = 32
# A sector of memory is 32 bytes, 16 half-precision channels: narrower blocks waste bandwidth.
LEAST_CHANNELS = 16
MOST_CHANNELS = 64
# A thread holds all channels of a block in parts, and their weights: for two positions each.
MOST_CHANNELS_APART = 32
# Up to here all positions of a block fit one program: 1024 positions × 16 channels are 8 warps.
ONE_PASS_POSITIONS = 1024
SPLIT_ELEMENTS = 16384
# The partial results that each program merges first: forward two numbers a group; backward two a
# channel, which at 64 would be as many bytes as the program's own tile.
MOST_CHUNKS = {1: 64, 2: 8}


@dataclass(frozen=True)
class Tile:
    """block: channels of a program, in whole groups. parts: the tiles side by side that hold them.
    positions, channels (of a part), groups: powers of two. fold: neighbouring channels of one group
    in one thread."""

    block: int
    positions: int
    channels: int
    parts: int
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
            "PARTS": self.parts,
            "TILE_G": self.groups,
            "FOLD": self.fold,
            "EXACT": covered and self.block == self.channels * self.parts,
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
    at_four_warps = 4 * THREADS_A_WARP * ELEMENTS_A_THREAD[itemsize] // live // rows
    tile = _tile(rows, at_four_warps, channels, num_groups, itemsize, live)
    most = MOST_WARPS * THREADS_A_WARP * MOST_ELEMENTS_A_THREAD // live
    return None if tile.positions * tile.channels * tile.parts > most else tile


def split_tile(
    positions: int, channels: int, num_groups: int, itemsize: int, live: int = 1
) -> tuple[Tile, int, int]:
    """The tile, how many of them a chunk has, and how many chunks a sample has."""
    rows = power_of_two(positions)
    whole = _tile(rows, MOST_CHANNELS, channels, num_groups, itemsize, live)
    rows = max(1, min(SPLIT_ELEMENTS // live // power_of_two(whole.block), rows))
    tile = _tile(rows, MOST_CHANNELS, channels, num_groups, itemsize, live)
    tiles = -(-positions // rows)
    per_chunk = -(-tiles // MOST_CHUNKS[live])
    return tile, per_chunk, -(-tiles // per_chunk)


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


def _tile(rows: int, wanted: int, channels: int, num_groups: int, itemsize: int, live: int) -> Tile:
    group = channels // num_groups
    even = group & (group - 1) == 0
    # Groups of 3, 12 or 20 fill no power of two. A thread with positions to itself needs no
    # padding: it holds their channels in parts of a vector each, and which group a register belongs
    # to is known at compile time. Not so backward, which sums by channels: parts would shuffle them
    # all between all threads.
    apart = not even and rows >= THREADS_A_WARP and live == 1
    wanted = min(wanted, MOST_CHANNELS_APART if apart else MOST_CHANNELS)
    block = group * _groups_of_block(group, num_groups, itemsize, wanted)
    padded = power_of_two(block)
    apart &= padded <= MOST_CHANNELS and block * itemsize % VECTOR_BYTES == 0
    width = VECTOR_BYTES // itemsize if apart else padded
    a_thread = MOST_ELEMENTS_A_THREAD if apart else ELEMENTS_A_THREAD[itemsize] // live
    return Tile(
        block=block,
        positions=rows,
        channels=width,
        parts=-(-block // width),
        groups=padded // group if even else power_of_two(block // group),
        fold=min(group & -group, VECTOR_BYTES // itemsize),
        warps=min(max(rows * padded // (a_thread * THREADS_A_WARP), 1), MOST_WARPS),
    )


def _groups_of_block(group: int, num_groups: int, itemsize: int, wanted: int) -> int:
    """A divisor of num_groups: blocks of whole vectors, as many channels as wanted if they fit."""
    fits = [
        k
        for k in range(1, num_groups + 1)
        if num_groups % k == 0
        and (k == num_groups or k * group * itemsize % VECTOR_BYTES == 0)
        and k * group >= min(LEAST_CHANNELS, num_groups * group)
    ]
    within = [k for k in fits if k * group <= wanted]
    return within[-1] if within else fits[0]
