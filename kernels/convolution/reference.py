"""A convolution with what is fused around it: the specification its fast twin agrees with.

    a = activation((x − mean) · scale + shift),  x = concatenate(maps)      by channels
    y = (a ⋆ weight + bias + row + residual) / divisor

A linear layer is a 1x1 convolution. `padding` zeros lie before the first row and column; beyond the
last there are as many as the output needs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def convolution(
    maps: Sequence[Tensor],
    weight: Tensor,
    size: tuple[int, int],
    *,
    norm: Tensor | None = None,
    activation: str | None = None,
    stride: int = 1,
    padding: int = 0,
    bias: Tensor | None = None,
    row: Tensor | None = None,
    residual: Tensor | None = None,
    divisor: float = 1.0,
) -> Tensor:
    """y [B, O, *size].

    maps: one or two, [B, C1, H, W] and [B, C2, H, W]. weight: [O, C, k, k], k 1 or 3, C = C1 + C2.
    norm: [B, 3, C] = (mean, scale, shift). bias: [O]. row: [B, O]. residual: like y.
    """
    x = torch.cat(list(maps), dim=1)
    if norm is not None:
        mean, scale, shift = norm[..., None, None].unbind(1)
        x = (x - mean) * scale + shift
    x = F.silu(x) if activation == "silu" else x
    after = [
        (out - 1) * stride + weight.shape[-1] - padding - own
        for out, own in zip(size, x.shape[2:], strict=True)
    ]
    y = F.conv2d(F.pad(x, (padding, after[1], padding, after[0])), weight, bias, stride)
    y = y if row is None else y + row[..., None, None]
    return (y if residual is None else y + residual) / divisor
