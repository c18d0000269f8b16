"""GroupNorm + SiLU on a GPU, forward, in two passes: for maps whose groups fit no program.

The first kernel gives each chunk of a sample's positions its mean and its sum of squares about that
mean, M2, one writer each; it also writes the sum of the inputs, once. The second merges a group's
chunks (Chan, Golub and LeVeque 1979), in the same order in every program, and normalises:

    mean = Σ n_k mean_k / N,   M2 = Σ M2_k + n_k (mean_k − mean)²

No atomics: the result is the same bits every time.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from fastddpm.kernels.common.launch import Launch
from fastddpm.kernels.group_norm_silu.tiling import (
    launch_over,
    power_of_two,
    split_tile,
    without_padding,
)
from fastddpm.kernels.group_norm_silu.triton_tile import (
    activate,
    block_of,
    load_affine,
    load_row,
    load_sum,
    look_up_groups,
    product,
    square,
    store_groups,
    store_tile,
    sum_groups,
)


@triton.jit
def group_norm_silu_statistics(
    x,
    row,
    residual,
    skip,
    total,
    partial_mean,
    partial_m2,
    row_stride,
    POSITIONS: tl.constexpr,
    OWN: tl.constexpr,
    CHANNELS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE_P: tl.constexpr,
    TILE_C: tl.constexpr,
    TILE_G: tl.constexpr,
    FOLD: tl.constexpr,
    EXACT: tl.constexpr,
    TILES: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    sample, chunk, first, channels, held = block_of(
        tl.program_id(0), CHUNKS, CHANNELS, BLOCK, TILE_C
    )
    chunk_mean = tl.zeros((TILE_G,), tl.float32)
    chunk_m2 = tl.zeros((TILE_G,), tl.float32)
    seen = 0.0
    PADDED: tl.constexpr = TILE_P * TILES * CHUNKS != POSITIONS
    for tile in range(TILES):
        start = (chunk * TILES + tile) * TILE_P
        position = start + tl.arange(0, TILE_P)[:, None]
        mask = (position < POSITIONS) & held[None, :]
        h = load_sum(
            *(x, row, residual, skip, sample, position, channels, held, row_stride),
            *(POSITIONS, OWN, CHANNELS - OWN, EXACT),
        )
        if total is not None:
            out = sample * (POSITIONS * CHANNELS) + position * CHANNELS + channels[None, :]
            store_tile(total + out, h, mask, EXACT)
        if PADDED:
            h = tl.where(mask, h, 0.0)
        # The last chunk may have tiles without a position: they change nothing.
        here = tl.minimum(tl.maximum(POSITIONS - start, 0), TILE_P).to(tl.float32)
        tile_mean = sum_groups(h, GROUP, TILE_G, FOLD) / (tl.maximum(here, 1.0) * GROUP)
        h -= look_up_groups(tile_mean, 0, GROUP, TILE_C)[None, :]
        if PADDED:
            h = tl.where(mask, h, 0.0)
        share = here / (seen + here)
        delta = tile_mean - chunk_mean
        chunk_m2 += (
            sum_groups(square(h, FOLD), GROUP, TILE_G, FOLD) + delta * delta * seen * GROUP * share
        )
        chunk_mean += delta * share
        seen += here
    slot = sample * CHUNKS + chunk
    store_groups(partial_mean, chunk_mean, slot, first, CHANNELS, GROUP, BLOCK)
    store_groups(partial_m2, chunk_m2, slot, first, CHANNELS, GROUP, BLOCK)


@triton.jit
def group_norm_silu_apply(
    x,
    row,
    residual,
    skip,
    weight,
    bias,
    scale,
    shift,
    partial_mean,
    partial_m2,
    y,
    mean,
    rstd,
    eps,
    row_stride,
    scale_stride,
    shift_stride,
    POSITIONS: tl.constexpr,
    OWN: tl.constexpr,
    CHANNELS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE_P: tl.constexpr,
    TILE_C: tl.constexpr,
    TILE_G: tl.constexpr,
    FOLD: tl.constexpr,
    EXACT: tl.constexpr,
    TILES: tl.constexpr,
    CHUNKS: tl.constexpr,
    TILE_K: tl.constexpr,
    SILU: tl.constexpr,
):
    sample, chunk, first, channels, held = block_of(
        tl.program_id(0), CHUNKS, CHANNELS, BLOCK, TILE_C
    )
    group_mean, m2 = merge_chunks(
        *(partial_mean, partial_m2, sample, first),
        *(POSITIONS, CHANNELS, GROUP, TILE_P * TILES, TILE_G, CHUNKS, TILE_K),
    )
    group_rstd = tl.rsqrt(m2 / (POSITIONS * GROUP) + eps)
    if chunk == 0:
        store_groups(mean, group_mean, sample, first, CHANNELS, GROUP, BLOCK)
        store_groups(rstd, group_rstd, sample, first, CHANNELS, GROUP, BLOCK)
    factor, offset = load_affine(
        *(weight, bias, scale, shift, sample, channels, held, scale_stride, shift_stride, EXACT)
    )
    begin = first % GROUP
    factor *= look_up_groups(group_rstd, begin, GROUP, TILE_C)
    offset -= look_up_groups(group_mean, begin, GROUP, TILE_C) * factor
    if row is not None:
        offset += (
            load_row(row, sample, channels, held, row_stride, OWN, CHANNELS - OWN, EXACT) * factor
        )
    for tile in range(TILES):
        position = (chunk * TILES + tile) * TILE_P + tl.arange(0, TILE_P)[:, None]
        mask = (position < POSITIONS) & held[None, :]
        h = load_sum(
            *(x, None, residual, skip, sample, position, channels, held, 0),
            *(POSITIONS, OWN, CHANNELS - OWN, EXACT),
        )
        out = sample * (POSITIONS * CHANNELS) + position * CHANNELS + channels[None, :]
        FAST: tl.constexpr = y.dtype.element_ty != tl.float32
        store_tile(y + out, activate(h, factor, offset, SILU, FAST), mask, EXACT)


@triton.jit
def merge_chunks(
    partial_mean,
    partial_m2,
    sample,
    first,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    GROUP: tl.constexpr,
    CHUNK_P: tl.constexpr,
    TILE_G: tl.constexpr,
    CHUNKS: tl.constexpr,
    TILE_K: tl.constexpr,
):
    """(mean, M2) [TILE_G] over all chunks, of the first channel's group and those after it."""
    GROUPS: tl.constexpr = CHANNELS // GROUP
    group, k = first // GROUP + tl.arange(0, TILE_G)[None, :], tl.arange(0, TILE_K)[:, None]
    at = (sample * CHUNKS + k) * GROUPS + group
    known = (k < CHUNKS) & (group < GROUPS)
    means, m2 = tl.load(partial_mean + at, known, 0.0), tl.load(partial_m2 + at, known, 0.0)
    count = tl.minimum(tl.maximum(POSITIONS - k * CHUNK_P, 0), CHUNK_P).to(tl.float32)
    merged = tl.sum(product(means, count / POSITIONS), axis=0)
    apart = means - merged[None, :]
    return merged, tl.sum(m2 + apart * apart * (count * GROUP), axis=0)


def launches(arguments: dict[str, Any], constants: dict[str, Any]) -> list[Launch]:
    """The two launches; arguments and constants as for group_norm_silu_one_pass."""
    x, total, mean = (arguments[name] for name in ("x", "total", "mean"))
    batch, num_groups = mean.shape
    positions, channels = constants["POSITIONS"], constants["CHANNELS"]
    tile, tiles, chunks = split_tile(positions, channels, num_groups, x.element_size())
    constants |= tile.constants(positions, tiles * chunks)
    constants |= {"TILES": tiles, "CHUNKS": chunks, "TILE_K": power_of_two(chunks)}
    for name in ("partial_mean", "partial_m2"):
        arguments[name] = mean.new_empty((batch, chunks, num_groups))
    call = (batch * chunks, tile, arguments, constants)
    writes = ("total", "partial_mean", "partial_m2")
    statistics = launch_over(group_norm_silu_statistics, *call, writes=writes)
    if total is not None:
        arguments |= {"x": total, "row": None, "residual": None, "skip": None}
        constants |= {"OWN": channels}
    tile = without_padding(tile, channels, constants["GROUP"], x.element_size())
    call = (batch * chunks, tile, arguments, constants | tile.constants(positions, tiles * chunks))
    apply = launch_over(group_norm_silu_apply, *call, writes=("y", "mean", "rstd"))
    return [statistics, apply]
