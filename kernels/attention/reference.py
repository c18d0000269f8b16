"""Attention with what is fused around it: the specification its fast twin agrees with.

    y = (softmax(scale q kᵀ) v + bias + row + residual) / divisor       for each head

Vaswani et al. 2017, equation 1. Heads lie side by side in the channels.
"""

from __future__ import annotations

from torch import Tensor


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    scale: float,
    *,
    bias: Tensor | None = None,
    row: Tensor | None = None,
    residual: Tensor | None = None,
    divisor: float = 1.0,
) -> Tensor:
    """y [B, N, C]. q, k, v, residual: [B, N, C]. bias: [C]. row: [B, C]."""
    q, k, v = (t.reshape(*t.shape[:2], heads, -1).transpose(1, 2) for t in (q, k, v))
    weights = (scale * q @ k.mT).softmax(dim=-1)
    y = (weights @ v).transpose(1, 2).flatten(2)
    y = y if bias is None else y + bias
    y = y if row is None else y + row[:, None]
    return (y if residual is None else y + residual) / divisor
