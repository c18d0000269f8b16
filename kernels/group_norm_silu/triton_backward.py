"""The derivative of GroupNorm + SiLU on a GPU: one pass where a block fits a program's registers.

dx, and the sums over positions that are all the small derivatives need: Σ dz, Σ dz·xhat, Σ dx.
Larger maps go to triton_backward_split.py. The formulas: triton_gradient.py and reference.py.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastddpm.kernels.common.channels_last import sample_stride
from fastddpm.kernels.common.launch import Launch
from fastddpm.kernels.group_norm_silu import triton_backward_split
from fastddpm.kernels.group_norm_silu.tiling import launch_over, one_pass_tile
from fastddpm.kernels.group_norm_silu.triton_gradient import (
    coefficients,
    load_dz,
    load_statistics,
    store_dx,
    sum_positions,
)
from fastddpm.kernels.group_norm_silu.triton_tile import block_of, load_affine, store_tile


@triton.jit
def group_norm_silu_backward_one_pass(
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
    dx,
    sums,
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
    SILU: tl.constexpr,
    NEEDS_ROW: tl.constexpr,
):
    sample, _, _, channels, held = block_of(tl.program_id(0), 1, CHANNELS, BLOCK, TILE_C)
    position = tl.arange(0, TILE_P)[:, None]
    factor, offset = load_affine(
        *(weight, bias, scale, shift, sample, channels, held, scale_stride, shift_stride, EXACT)
    )
    centre, group_rstd = load_statistics(
        *(mean, rstd, row, sample, channels, held, row_stride, CHANNELS, GROUP, EXACT)
    )
    dz, xhat = load_dz(
        *(dy, x, sample, position, channels, held),
        *(factor, offset, centre, group_rstd, POSITIONS, CHANNELS, EXACT, SILU),
    )
    s1, s2 = sum_positions(dz, xhat)
    out = sums + sample * CHANNELS + channels
    store_tile(out, s1, held, EXACT)
    store_tile(out + sums_stride, s2, held, EXACT)
    if dx is not None:
        a, b, c = coefficients(s1, s2, factor, group_rstd, POSITIONS, GROUP, TILE_C, TILE_G)
        value = store_dx(
            *(dx, d_total, dz, xhat, a, b, c, sample, position, channels, held),
            *(POSITIONS, CHANNELS, EXACT),
        )
        if NEEDS_ROW:
            store_tile(out + 2 * sums_stride, tl.sum(value, axis=0), held, EXACT)


def launches(
    dy: Tensor,
    d_total: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    *,
    row: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    silu: bool,
    dx: Tensor | None,
    sums: Tensor,
) -> list[Launch]:
    """The launches that write sums, float32 [2 or 3, B, C], and dx unless it is None.

    total = x + row. All [B, C, H, W] tensors are channels_last in the dtype of x. The third of the
    sums is written if there is room for it and dx is given.
    """
    batch, channels, height, width = x.shape
    positions, num_groups = height * width, mean.shape[1]
    arguments = {
        **{"dy": dy, "d_total": d_total, "x": x, "row": row, "weight": weight, "bias": bias},
        **{"scale": scale, "shift": shift, "mean": mean, "rstd": rstd, "dx": dx, "sums": sums},
        **{"row_stride": sample_stride(row), "scale_stride": sample_stride(scale)},
        **{"shift_stride": sample_stride(shift), "sums_stride": sums.stride(0)},
    }
    constants = {"POSITIONS": positions, "CHANNELS": channels, "GROUP": channels // num_groups}
    constants |= {"SILU": silu, "NEEDS_ROW": len(sums) == 3}
    tile = one_pass_tile(positions, channels, num_groups, x.element_size(), live=2)
    if tile is None:
        split: list[Launch] = triton_backward_split.launches(arguments, constants)
        return split
    call = (batch, tile, arguments, constants | tile.constants(positions))
    return [launch_over(group_norm_silu_backward_one_pass, *call, writes=("dx", "sums"))]
