"""A 3x3 convolution with what surrounds it in a U-Net: the specification of the CPU program's.

    h = activation((concatenate(x, skip) - mean) · scale + shift)        GroupNorm's numbers given
    y = (conv3x3(double(h)) + bias + row + residual) / divisor           stride 1, padding 1

double enlarges by two, nearest neighbour, or does nothing. The statistics of y, for the next norm,
are mean and squared deviations of each channel over strips of four rows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    skip: Tensor | None = None,
    norm: Tensor | None = None,
    activation: str | None = None,
    doubled: bool = False,
    row: Tensor | None = None,
    residual: Tensor | None = None,
    divisor: float = 1.0,
) -> Tensor:
    """y, [B, C', H, W]. x, skip: [B, C1, h, w] and [B, C2, h, w]; H = 2 h if doubled, else h.

    weight: [C', C1 + C2, 3, 3]. bias: [C']. norm: [B, 3, C1 + C2], mean, scale and shift.
    row: [B, C']. residual: like y.
    """
    h = x if skip is None else torch.cat([x, skip], dim=1)
    if norm is not None:
        mean, scale, shift = norm[..., None, None].unbind(1)
        h = (h - mean) * scale + shift
    h = F.silu(h) if activation == "silu" else h
    h = F.interpolate(h, scale_factor=2, mode="nearest") if doubled else h
    y = F.conv2d(h, weight, bias, padding=1)
    y = y if row is None else y + row[..., None, None]
    y = y if residual is None else y + residual
    return y if divisor == 1 else y / divisor


def strip_statistics(y: Tensor) -> Tensor:
    """[B, ceil(H / 4), 2, C]: each channel's mean and sum of squared deviations in strips."""
    strips = torch.split(y, 4, dim=2)
    mean = torch.stack([strip.mean((2, 3)) for strip in strips], dim=1)
    squares = [strip.var((2, 3), correction=0) * strip[0, 0].numel() for strip in strips]
    return torch.stack([mean, torch.stack(squares, dim=1)], dim=2)
