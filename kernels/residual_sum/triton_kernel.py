"""x + row + residual on a GPU, and the sum resampled, each element read once.

A program has a tile [TILE_P positions, TILE_C channels] of one sample in channels_last memory. The
positions are those of the sum, or, where it is padded, of the padded map, whose border is zero.
Specification: reference.py.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastddpm.kernels.common import channels_last
from fastddpm.kernels.common.channels_last import sample_stride
from fastddpm.kernels.common.launch import Launch

# 32 values a thread: four 128-bit loads of each half-precision source are under way at a time.
ELEMENTS = 4096
MOST_CHANNELS = 128
LEAST_CHANNELS = 8
WARPS = 4


@triton.jit
def residual_sum_kernel(
    x,
    row,
    residual,
    total,
    resampled,
    row_stride,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    TILE_P: tl.constexpr,
    TILE_C: tl.constexpr,
    PAD: tl.constexpr,
):
    """total and resampled are None where they are not wanted."""
    BLOCKS: tl.constexpr = (CHANNELS + TILE_C - 1) // TILE_C
    # Of the map that the positions run over.
    ROWS: tl.constexpr = HEIGHT + PAD
    COLUMNS: tl.constexpr = WIDTH + PAD
    CHUNKS: tl.constexpr = (ROWS * COLUMNS + TILE_P - 1) // TILE_P
    program = tl.program_id(0)
    channels = program % BLOCKS * TILE_C + tl.arange(0, TILE_C)
    sample = (program // BLOCKS // CHUNKS).to(tl.int64)
    position = program // BLOCKS % CHUNKS * TILE_P + tl.arange(0, TILE_P)[:, None]
    here = (position < ROWS * COLUMNS) & (channels < CHANNELS)[None, :]
    i, j = position // COLUMNS, position % COLUMNS
    inside = here & (i < HEIGHT) & (j < WIDTH) if PAD else here
    channel = channels[None, :]
    start = sample * (HEIGHT * WIDTH * CHANNELS)
    at = start + ((i * WIDTH + j if PAD else position) * CHANNELS + channel)
    value = tl.load(x + at, inside, 0.0).to(tl.float32)
    if row is not None:
        added = tl.load(row + sample * row_stride + channels, channels < CHANNELS, 0.0)
        value += added.to(tl.float32)[None, :]
    if residual is not None:
        value += tl.load(residual + at, inside, 0.0).to(tl.float32)
    value = value.to(x.dtype.element_ty)
    if total is not None:
        tl.store(total + at, value, inside)
    if resampled is not None:
        if PAD:
            start = sample * (ROWS * COLUMNS * CHANNELS)
            value = tl.where(inside, value, 0.0)
            tl.store(resampled + start + position * CHANNELS + channel, value, here)
        else:
            for below in tl.static_range(2):
                for right in tl.static_range(2):
                    to = (2 * i + below) * (2 * WIDTH) + 2 * j + right
                    tl.store(resampled + 4 * start + to * CHANNELS + channel, value, here)


def launch(
    x: Tensor,
    row: Tensor | None,
    residual: Tensor | None,
    resample: str | None,
    total: Tensor | None,
    resampled: Tensor | None,
) -> Launch:
    """The launch that writes total and resampled, "pad" or "double", unless they are None.

    All [B, C, H, W] tensors are channels_last.
    """
    batch, channels, height, width = x.shape
    pad = int(resample == "pad")
    positions = (height + pad) * (width + pad)
    tile_c = _channels_of_tile(channels)
    tile_p = min(ELEMENTS // tile_c, triton.next_power_of_2(positions))
    blocks, chunks = triton.cdiv(channels, tile_c), triton.cdiv(positions, tile_p)
    outputs = {"total": total, "resampled": resampled}
    return Launch(
        residual_sum_kernel,
        (batch * chunks * blocks,),
        {"x": x, "row": row, "residual": residual, **outputs, "row_stride": sample_stride(row)},
        {
            **{"HEIGHT": height, "WIDTH": width, "CHANNELS": channels},
            **{"TILE_P": tile_p, "TILE_C": tile_c, "PAD": pad},
        },
        num_warps=WARPS,
        writes=tuple(name for name, tensor in outputs.items() if tensor is not None),
    )


def _channels_of_tile(channels: int) -> int:
    """The largest power of two that divides the channels; where that is small, one they fit in."""
    divisor = channels & -channels
    wide: int = divisor if divisor >= LEAST_CHANNELS else triton.next_power_of_2(channels)
    return min(wide, MOST_CHANNELS)


def unsupported(x: Tensor, **others: Tensor | None) -> list[str]:
    """Why the kernel cannot run on x and the other arguments; empty if it can."""
    reasons: list[str] = channels_last.unsupported(x, **others)
    return reasons
