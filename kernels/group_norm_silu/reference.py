"""GroupNorm, FiLM and SiLU in one call: the specification its fast twins are checked against.

    h = x + row
    y = (h − mean_g) / √(var_g + eps) · weight + bias
    y = y·(1 + scale) + shift
    silu(y) = y / (1 + exp(−y))

mean_g and var_g (biased) run over the channels of a group and all positions (Wu and He 2018).
Per sample and channel: row, the time embedding's (Ho et al. 2020), or scale and shift, FiLM
(Dhariwal and Nichol 2021).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def group_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float,
    *,
    row: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str | None = "silu",
) -> Tensor:
    """x [B, C, *spatial], weight and bias [C], row, scale and shift [B, C] -> [B, C, *spatial]."""
    if row is not None:
        x = x + _per_channel(row, x)
    y = F.group_norm(x, num_groups, weight, bias, eps)
    if scale is not None and shift is not None:
        y = y * (1 + _per_channel(scale, y)) + _per_channel(shift, y)
    return F.silu(y) if activation == "silu" else y


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(*values.shape, *[1] * (x.dim() - 2))
