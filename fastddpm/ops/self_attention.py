"""Self-attention over the positions of a feature map, as one op (Ho et al. 2020, appendix B).

y = W_o softmax(Q Kᵀ / √d) V + b_o,   Q, K, V linear in h,   d channels per head

The U-Net calls it while it is recorded (recording.py); otherwise its own layers compute the same.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from fastddpm.ops.registry import register


class Linear(NamedTuple):
    """weight: [out, in]. bias: [out]."""

    weight: Tensor
    bias: Tensor


def self_attention(
    h: Tensor, query: Linear, key: Linear, value: Linear, out: Linear, heads: int
) -> Tensor:
    """y, [B, C, *spatial].

    Args:
        h: [B, C, *spatial], contiguous.
        query, key, value: C -> heads·d.
        out: heads·d -> C.
        heads: their number; head k has the features [k d, (k + 1) d).

    Raises:
        ValueError: for weights whose shapes do not fit these.
    """
    inner, channels = heads * (query.weight.shape[0] // heads), h.shape[1]
    for name, layer, shape in (
        ("query", query, (inner, channels)),
        ("key", key, (inner, channels)),
        ("value", value, (inner, channels)),
        ("out", out, (channels, inner)),
    ):
        if tuple(layer.weight.shape) != shape or tuple(layer.bias.shape) != shape[:1]:
            got = f"{list(layer.weight.shape)} and {list(layer.bias.shape)}"
            raise ValueError(f"{name} must be {list(shape)} and {list(shape[:1])}, got {got}")
    y: Tensor = SELF_ATTENTION(h, *query, *key, *value, *out, heads)
    return y


def _run(
    h: Tensor,
    q_weight: Tensor,
    q_bias: Tensor,
    k_weight: Tensor,
    k_bias: Tensor,
    v_weight: Tensor,
    v_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    heads: int,
) -> Tensor:
    tokens = rearrange(h, "b c ... -> b (...) c").contiguous()
    q, k, v = (
        rearrange(F.linear(tokens, weight, bias), "b n (h d) -> b h n d", h=heads)
        for weight, bias in ((q_weight, q_bias), (k_weight, k_bias), (v_weight, v_bias))
    )
    mixed = rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)")
    y = F.linear(mixed, out_weight, out_bias)
    return y.transpose(1, 2).reshape(h.shape).contiguous()


def _fake(h: Tensor, *arguments: Any) -> Tensor:
    return torch.empty_like(h, memory_format=torch.contiguous_format)


SELF_ATTENTION = register(
    "self_attention(Tensor h, Tensor q_weight, Tensor q_bias, Tensor k_weight, Tensor k_bias, "
    "Tensor v_weight, Tensor v_bias, Tensor out_weight, Tensor out_bias, int heads) -> Tensor",
    _run,
    _fake,
)
