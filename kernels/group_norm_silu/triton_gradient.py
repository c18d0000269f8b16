"""What the backward kernels of GroupNorm + SiLU share: reading dz and xhat, writing dx.

With z = xhat·factor + offset, dz = dy·silu'(z) and, per channel, S1 = Σ dz and S2 = Σ dz·xhat over
the positions (reference.py):

    dx = rstd·(dz·factor − mean_g(factor·S1) − xhat·mean_g(factor·S2)) + d_total
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastddpm.kernels.group_norm_silu.triton_tile import (
    gather_groups,
    load_row,
    load_tile,
    product,
    sigmoid,
    spread_groups,
    store_tile,
)


@triton.jit
def load_statistics(
    mean,
    rstd,
    row,
    sample,
    channels,
    held,
    row_stride,
    CHANNELS: tl.constexpr,
    GROUP: tl.constexpr,
    EXACT: tl.constexpr,
):
    """centre and rstd [TILE_C] of xhat = (x − centre)·rstd: the group's mean, less the row."""
    at = sample * (CHANNELS // GROUP) + channels // GROUP
    centre = tl.load(mean + at, held, 0.0)
    if row is not None:
        centre -= load_row(row, sample, channels, held, row_stride, CHANNELS, 0, EXACT)
    return centre, tl.load(rstd + at, held, 0.0)


@triton.jit
def load_dz(
    dy,
    x,
    sample,
    position,
    channels,
    held,
    factor,
    offset,
    centre,
    group_rstd,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    EXACT: tl.constexpr,
    SILU: tl.constexpr,
):
    """dz = dy·silu'(z) and xhat, [TILE_P, TILE_C]; dz is zero where nothing is.

    silu'(z) = σ(z)·(1 + z·(1 − σ(z))).
    """
    mask = (position < POSITIONS) & held[None, :]
    at = sample * (POSITIONS * CHANNELS) + position * CHANNELS + channels[None, :]
    h = load_tile(x + at, mask, EXACT).to(tl.float32)
    dz = load_tile(dy + at, mask, EXACT).to(tl.float32)
    xhat = (h - centre[None, :]) * group_rstd[None, :]
    if SILU:
        z = xhat * factor[None, :] + offset[None, :]
        s = sigmoid(z, x.dtype.element_ty != tl.float32)
        dz *= s * (1.0 + z * (1.0 - s))
    return dz, xhat


@triton.jit
def sum_positions(dz, xhat):
    """S1 and S2 of a tile, [TILE_C]."""
    # As in `square`: with few elements a thread may have one position only.
    FEW: tl.constexpr = dz.shape[0] * dz.shape[1] < 512
    if FEW:
        dz = product(dz, 1.0)
    return tl.sum(dz, axis=0), tl.sum(product(dz, xhat) if FEW else dz * xhat, axis=0)


@triton.jit
def coefficients(
    s1,
    s2,
    factor,
    group_rstd,
    POSITIONS: tl.constexpr,
    GROUP: tl.constexpr,
    TILE_C: tl.constexpr,
    TILE_G: tl.constexpr,
):
    """a, b, c [TILE_C] of dx = dz·a − xhat·b − c + d_total."""
    COUNT: tl.constexpr = POSITIONS * GROUP
    mean_1 = gather_groups(product(s1, factor), GROUP, TILE_G) / COUNT
    mean_2 = gather_groups(product(s2, factor), GROUP, TILE_G) / COUNT
    b = spread_groups(mean_2, GROUP, TILE_C) * group_rstd
    return factor * group_rstd, b, spread_groups(mean_1, GROUP, TILE_C) * group_rstd


@triton.jit
def store_dx(
    dx,
    d_total,
    dz,
    xhat,
    a,
    b,
    c,
    sample,
    position,
    channels,
    held,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Write dx; return it in float32, zero where nothing is."""
    value = dz * a[None, :] - xhat * b[None, :] - c[None, :]
    mask = (position < POSITIONS) & held[None, :]
    at = sample * (POSITIONS * CHANNELS) + position * CHANNELS + channels[None, :]
    if d_total is not None:
        value += load_tile(d_total + at, mask, EXACT).to(tl.float32)
    store_tile(dx + at, value, mask, EXACT)
    return value if EXACT else tl.where(mask, value, 0.0)
