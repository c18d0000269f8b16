"""The derivative of GroupNorm + SiLU on a GPU in two passes: for maps whose groups fit no program.

The first kernel sums dz and dz·xhat over each chunk of a sample's positions; the second adds the
chunks, in the same order in every program, and writes dx; a third adds the sums of dx, if the row
needs them. One writer each and no atomics: the same bits every time.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from fastddpm.kernels.common.launch import Launch
from fastddpm.kernels.group_norm_silu.tiling import launch_over, power_of_two, split_tile
from fastddpm.kernels.group_norm_silu.triton_gradient import (
    coefficients,
    load_dz,
    load_statistics,
    store_dx,
    sum_positions,
)
from fastddpm.kernels.group_norm_silu.triton_tile import block_of, load_affine, store_tile


@triton.jit
def group_norm_silu_backward_sums(
    dy,
    x,
    row,
    weight,
    bias,
    scale,
    shift,
    mean,
    rstd,
    partials,
    row_stride,
    scale_stride,
    shift_stride,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE_P: tl.constexpr,
    TILE_C: tl.constexpr,
    EXACT: tl.constexpr,
    TILES: tl.constexpr,
    CHUNKS: tl.constexpr,
    SILU: tl.constexpr,
):
    """S1 and S2 of each chunk, [B, CHUNKS, 2, C]."""
    sample, chunk, _, channels, held = block_of(tl.program_id(0), CHUNKS, CHANNELS, BLOCK, TILE_C)
    factor, offset = load_affine(
        *(weight, bias, scale, shift, sample, channels, held, scale_stride, shift_stride, EXACT)
    )
    centre, group_rstd = load_statistics(
        *(mean, rstd, row, sample, channels, held, row_stride, CHANNELS, GROUP, EXACT)
    )
    s1 = tl.zeros((TILE_C,), tl.float32)
    s2 = tl.zeros((TILE_C,), tl.float32)
    for tile in range(TILES):
        position = (chunk * TILES + tile) * TILE_P + tl.arange(0, TILE_P)[:, None]
        dz, xhat = load_dz(
            *(dy, x, sample, position, channels, held),
            *(factor, offset, centre, group_rstd, POSITIONS, CHANNELS, EXACT, SILU),
        )
        dz_sum, dz_xhat_sum = sum_positions(dz, xhat)
        s1 += dz_sum
        s2 += dz_xhat_sum
    out = partials + (sample * CHUNKS + chunk) * (2 * CHANNELS) + channels
    store_tile(out, s1, held, EXACT)
    store_tile(out + CHANNELS, s2, held, EXACT)


@triton.jit
def group_norm_silu_backward_apply(
    dy,
    d_total,
    x,
    row,
    weight,
    bias,
    scale,
    shift,
    mean,
    rstd,
    partials,
    dx,
    sums,
    row_partials,
    row_stride,
    scale_stride,
    shift_stride,
    sums_stride,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE_P: tl.constexpr,
    TILE_C: tl.constexpr,
    TILE_G: tl.constexpr,
    EXACT: tl.constexpr,
    TILES: tl.constexpr,
    CHUNKS: tl.constexpr,
    TILE_K: tl.constexpr,
    SILU: tl.constexpr,
    NEEDS_ROW: tl.constexpr,
):
    """dx from the merged sums, which the first chunk's program writes; and S3 of each chunk."""
    sample, chunk, _, channels, held = block_of(tl.program_id(0), CHUNKS, CHANNELS, BLOCK, TILE_C)
    of_sample = partials + sample * (CHUNKS * 2 * CHANNELS) + channels
    s1 = add_chunks(of_sample, held, 2 * CHANNELS, CHUNKS, TILE_K)
    s2 = add_chunks(of_sample + CHANNELS, held, 2 * CHANNELS, CHUNKS, TILE_K)
    if chunk == 0:
        out = sums + sample * CHANNELS + channels
        store_tile(out, s1, held, EXACT)
        store_tile(out + sums_stride, s2, held, EXACT)
    if dx is not None:
        factor, offset = load_affine(
            *(weight, bias, scale, shift, sample, channels, held),
            *(scale_stride, shift_stride, EXACT),
        )
        centre, group_rstd = load_statistics(
            *(mean, rstd, row, sample, channels, held, row_stride, CHANNELS, GROUP, EXACT)
        )
        a, b, c = coefficients(s1, s2, factor, group_rstd, POSITIONS, GROUP, TILE_C, TILE_G)
        s3 = tl.zeros((TILE_C,), tl.float32)
        for tile in range(TILES):
            position = (chunk * TILES + tile) * TILE_P + tl.arange(0, TILE_P)[:, None]
            dz, xhat = load_dz(
                *(dy, x, sample, position, channels, held),
                *(factor, offset, centre, group_rstd, POSITIONS, CHANNELS, EXACT, SILU),
            )
            value = store_dx(
                *(dx, d_total, dz, xhat, a, b, c, sample, position, channels, held),
                *(POSITIONS, CHANNELS, EXACT),
            )
            if NEEDS_ROW:
                s3 += tl.sum(value, axis=0)
        if NEEDS_ROW:
            out = row_partials + (sample * CHUNKS + chunk) * CHANNELS + channels
            store_tile(out, s3, held, EXACT)


@triton.jit
def group_norm_silu_backward_row(
    row_partials,
    sums,
    sums_stride,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE_C: tl.constexpr,
    EXACT: tl.constexpr,
    CHUNKS: tl.constexpr,
    TILE_K: tl.constexpr,
):
    """S3 from those of the chunks."""
    sample, _, _, channels, held = block_of(tl.program_id(0), 1, CHANNELS, BLOCK, TILE_C)
    of_sample = row_partials + sample * (CHUNKS * CHANNELS) + channels
    s3 = add_chunks(of_sample, held, CHANNELS, CHUNKS, TILE_K)
    store_tile(sums + 2 * sums_stride + sample * CHANNELS + channels, s3, held, EXACT)


@triton.jit
def add_chunks(pointers, held, stride, CHUNKS: tl.constexpr, TILE_K: tl.constexpr):
    """[TILE_C] pointers of the first chunk -> the sums over all chunks."""
    k = tl.arange(0, TILE_K)[:, None]
    values = tl.load(pointers[None, :] + k * stride, (k < CHUNKS) & held[None, :], 0.0)
    return tl.sum(values, axis=0)


def launches(arguments: dict[str, Any], constants: dict[str, Any]) -> list[Launch]:
    """The launches; arguments and constants as for group_norm_silu_backward_one_pass."""
    x, mean, sums = (arguments[name] for name in ("x", "mean", "sums"))
    batch, num_groups = mean.shape
    positions, channels = constants["POSITIONS"], constants["CHANNELS"]
    tile, tiles, chunks = split_tile(positions, channels, num_groups, x.element_size(), live=2)
    constants |= tile.constants(positions, tiles * chunks)
    constants |= {"TILES": tiles, "CHUNKS": chunks, "TILE_K": power_of_two(chunks)}
    needs_row = arguments["dx"] is not None and len(sums) == 3
    arguments["partials"] = sums.new_empty((batch, chunks, 2, channels))
    arguments["row_partials"] = sums.new_empty((batch, chunks, channels)) if needs_row else None
    call = (batch * chunks, tile, arguments, constants)
    found = [
        launch_over(group_norm_silu_backward_sums, *call, writes=("partials",)),
        launch_over(group_norm_silu_backward_apply, *call, writes=("dx", "sums", "row_partials")),
    ]
    if needs_row:
        call = (batch, tile, arguments, constants)
        found.append(launch_over(group_norm_silu_backward_row, *call, writes=("sums",)))
    return found
