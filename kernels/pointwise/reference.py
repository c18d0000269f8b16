"""A map written as it is read: the specification its fast twin agrees with.

    v = resample(activation((concatenate(x, skip) − mean) · scale + shift))
    y = (v + bias + row + residual) / divisor

resample: "none", "halve", the mean of 2x2 pixels, or "double", each pixel four times. mean, scale
and shift are GroupNorm's coefficients for each sample and channel. y's statistics are those of
group_norm_silu/reference.py.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

RESAMPLES = ("none", "halve", "double")


def pointwise(
    x: Tensor,
    *,
    skip: Tensor | None = None,
    norm: Tensor | None = None,
    activation: str | None = None,
    resample: str = "none",
    bias: Tensor | None = None,
    row: Tensor | None = None,
    residual: Tensor | None = None,
    divisor: float = 1.0,
) -> Tensor:
    """y, [B, C, H', W'] with C = C1 + C2.

    x: [B, C1, H, W]. skip: [B, C2, H, W]. norm: [B, 3, C]. bias: [C]. row: [B, C].
    residual: like y.
    """
    v = x if skip is None else torch.cat([x, skip], dim=1)
    if norm is not None:
        mean, scale, shift = norm[..., None, None].unbind(1)
        v = (v - mean) * scale + shift
    v = F.silu(v) if activation == "silu" else v
    if resample == "halve":
        v = F.avg_pool2d(v, 2)
    elif resample == "double":
        v = F.interpolate(v, scale_factor=2.0, mode="nearest")
    v = v if bias is None else v + bias[:, None, None]
    v = v if row is None else v + row[:, :, None, None]
    v = v if residual is None else v + residual
    return v / divisor
