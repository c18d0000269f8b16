"""GroupNorm + SiLU on a GPU, forward: one pass where a block of groups fits a program's registers.

Each element is then read once and written once: the mean, the centred sum of squares and the result
come from registers. Larger maps go to triton_split.py. Specification: reference.py.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastddpm.kernels.common import channels_last
from fastddpm.kernels.common.channels_last import sample_stride
from fastddpm.kernels.common.launch import Launch
from fastddpm.kernels.group_norm_silu import triton_split
from fastddpm.kernels.group_norm_silu.tiling import launch_over, one_pass_tile
from fastddpm.kernels.group_norm_silu.triton_tile import (
    activate,
    block_of,
    load_affine,
    load_sum,
    spread_groups,
    square,
    store_groups,
    store_tile,
    sum_groups,
)


@triton.jit
def group_norm_silu_one_pass(
    x,
    row,
    residual,
    skip,
    weight,
    bias,
    scale,
    shift,
    y,
    total,
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
    SILU: tl.constexpr,
):
    sample, _, first, channels, held = block_of(tl.program_id(0), 1, CHANNELS, BLOCK, TILE_C)
    position = tl.arange(0, TILE_P)[:, None]
    mask = (position < POSITIONS) & held[None, :]
    h = load_sum(
        *(x, row, residual, skip, sample, position, channels, held, row_stride),
        *(POSITIONS, OWN, CHANNELS - OWN, EXACT),
    )
    out = sample * (POSITIONS * CHANNELS) + position * CHANNELS + channels[None, :]
    if total is not None:
        store_tile(total + out, h, mask, EXACT)

    # Padding channels are zero and belong to no group; padding positions hold the row.
    PADDED: tl.constexpr = TILE_P != POSITIONS
    if PADDED:
        h = tl.where(mask, h, 0.0)
    COUNT: tl.constexpr = POSITIONS * GROUP
    group_mean = sum_groups(h, GROUP, TILE_G, FOLD) / COUNT
    h -= spread_groups(group_mean, GROUP, TILE_C)[None, :]
    if PADDED:
        h = tl.where(mask, h, 0.0)
    group_rstd = tl.rsqrt(sum_groups(square(h, FOLD), GROUP, TILE_G, FOLD) / COUNT + eps)
    store_groups(mean, group_mean, sample, first, CHANNELS, GROUP, BLOCK)
    store_groups(rstd, group_rstd, sample, first, CHANNELS, GROUP, BLOCK)

    factor, offset = load_affine(
        *(weight, bias, scale, shift, sample, channels, held, scale_stride, shift_stride, EXACT)
    )
    factor *= spread_groups(group_rstd, GROUP, TILE_C)
    FAST: tl.constexpr = y.dtype.element_ty != tl.float32
    store_tile(y + out, activate(h, factor, offset, SILU, FAST), mask, EXACT)


def launches(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    row: Tensor | None,
    residual: Tensor | None,
    skip: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    silu: bool,
    y: Tensor,
    total: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
) -> list[Launch]:
    """The launches that write y, mean, rstd (float32 [B, G]) and, if it is given, total.

    All [B, C, H, W] tensors are channels_last.
    """
    batch, channels, height, width = y.shape
    positions, num_groups = height * width, mean.shape[1]
    arguments = {
        **{"x": x, "row": row, "residual": residual, "skip": skip},
        **{"weight": weight, "bias": bias, "scale": scale, "shift": shift},
        **{"y": y, "total": total, "mean": mean, "rstd": rstd, "eps": eps},
        **{"row_stride": sample_stride(row), "scale_stride": sample_stride(scale)},
        "shift_stride": sample_stride(shift),
    }
    constants = {"POSITIONS": positions, "OWN": x.shape[1], "CHANNELS": channels}
    constants |= {"GROUP": channels // num_groups, "SILU": silu}
    tile = one_pass_tile(positions, channels, num_groups, x.element_size())
    if tile is None:
        split: list[Launch] = triton_split.launches(arguments, constants)
        return split
    constants |= tile.constants(positions)
    writes = ("y", "total", "mean", "rstd")
    call = (batch, tile, arguments, constants)
    return [launch_over(group_norm_silu_one_pass, *call, writes=writes)]


def unsupported(x: Tensor, **others: Tensor | None) -> list[str]:
    """Why the kernels cannot run on x and the other arguments; empty if they can."""
    reasons: list[str] = channels_last.unsupported(x, **others)
    return reasons
