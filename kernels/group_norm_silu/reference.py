"""A sum, its GroupNorm, FiLM and SiLU in one call: the specification its fast twins agree with.

    total = concatenate(x + row + residual, skip)              by channels
    xhat = (total − mean_g) · rstd_g,   rstd_g = 1 / √(var_g + eps)
    z = (xhat · weight + bias)·(1 + scale) + shift
    y = silu(z) = z · σ(z)

mean_g and var_g (biased) run over the channels of a group and all positions (Wu and He 2018).
Per sample and channel: row, the time embedding's (Ho et al. 2020), or scale and shift, FiLM
(Dhariwal and Nichol 2021). A row without a batch dimension is the bias of the convolution that made
x. The residual and the skip are those of a U-Net's blocks (Ho et al. 2020, appendix B).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fastddpm.kernels.residual_sum.reference import per_channel, residual_sum


def group_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float,
    *,
    row: Tensor | None = None,
    residual: Tensor | None = None,
    skip: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str | None = "silu",
) -> tuple[Tensor, Tensor]:
    """(y, total), both [B, C, *spatial] with C = C1 + C2.

    x, residual: [B, C1, *spatial]. skip: [B, C2, *spatial]. weight, bias: [C]. row: [B, C1] or
    [C1]. scale, shift: [B, C].
    """
    total = residual_sum(x, row=row, residual=residual)
    total = total if skip is None else torch.cat([total, skip], dim=1)
    y = F.group_norm(total, num_groups, weight.to(x.dtype), bias.to(x.dtype), eps)
    if scale is not None and shift is not None:
        y = y * (1 + per_channel(scale, y)) + per_channel(shift, y)
    return F.silu(y) if activation == "silu" else y, total


def group_statistics(total: Tensor, num_groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """mean and rstd of each group, [B, G], float32 or wider."""
    wide = total.to(torch.promote_types(total.dtype, torch.float32))
    grouped = wide.reshape(total.shape[0], num_groups, -1)
    variance, mean = torch.var_mean(grouped, dim=2, correction=0)
    return mean, (variance + eps).rsqrt()


def group_norm_silu_backward(
    dy: Tensor,
    d_total: Tensor | None,
    total: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str | None = "silu",
) -> tuple[Tensor, Tensor]:
    """The derivative for total, and the sums over positions that give all the others.

        dz = dy · silu'(z),   silu'(z) = σ(z)·(1 + z·(1 − σ(z)))
        g = dz · weight · (1 + scale)
        d_total += rstd_g · (g − mean_g(g) − xhat · mean_g(g · xhat))

    dy, d_total, total: [B, C, *spatial]; mean, rstd: [B, G]. d_total: what flows back into total
    from elsewhere. Returns d_total in the dtype of total, and float32 (or wider) [3, B, C]:
    Σ dz, Σ dz·xhat and Σ d_total.
    """
    batch, channels = total.shape[:2]
    groups = mean.shape[1]
    per_group = (batch, groups, -1)
    wide = torch.promote_types(total.dtype, torch.float32)

    total_wide = total.to(wide)

    def spread(values: Tensor) -> Tensor:
        spread_values: Tensor = per_channel(values, total_wide)
        return spread_values

    h = total_wide.reshape(per_group)
    xhat = ((h - mean[..., None]) * rstd[..., None]).reshape(total.shape)
    factor = spread(weight) if scale is None else spread(weight) * (1 + spread(scale))
    offset = spread(bias) if scale is None else spread(bias) * (1 + spread(scale))
    z = xhat * factor + (offset if shift is None else offset + spread(shift))
    sigma = torch.sigmoid(z)
    dz = dy.to(wide)
    if activation == "silu":
        dz = dz * sigma * (1 + z * (1 - sigma))
    g = (dz * factor).reshape(per_group)
    grouped = xhat.reshape(per_group)
    inner = g - g.mean(2, keepdim=True) - grouped * (g * grouped).mean(2, keepdim=True)
    dx = (inner * rstd[..., None]).reshape(total.shape)
    dx = dx if d_total is None else dx + d_total.to(wide)
    by_channel = (batch, channels, -1)
    sums = torch.stack([t.reshape(by_channel).sum(2) for t in (dz, dz * xhat, dx)])
    return dx.to(total.dtype), sums
