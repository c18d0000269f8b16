"""Self-attention in three or four instructions.

    y = W_o softmax(Q Kᵀ / √d) V + b_o,   Q, K, V linear in h

With one head as wide as the map, d = C, two of the four products go into the other two, in exact
arithmetic the same. Q Kᵀ is (h A + a) hᵀ plus what is the same for all keys of a query, which
softmax ignores; and as its weights sum to one, W_o and b_v go through:

    A = W_qᵀ W_k,  a = W_kᵀ b_q;     W_o V -> W_o W_v h,  b = W_o b_v + b_o
    y = softmax((h A + a) hᵀ / √d) (W_o W_v h) + b

The products are taken in float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastddpm.engine.cpu.emitter import Emitter
from fastddpm.engine.cpu.memory import aligned
from fastddpm.engine.cpu.rules.convolution import convolve
from fastddpm.engine.cpu.rules.registry import rule
from fastddpm.engine.cpu.values import Constant, Feature, Map, Read, Value
from fastddpm.ops.program_abi import ALIGN, Arguments, Attention, Output
from fastddpm.ops.self_attention import SELF_ATTENTION


@rule(SELF_ATTENTION)
def self_attention(
    emit: Emitter,
    h: Value,
    q_weight: Constant,
    q_bias: Constant,
    k_weight: Constant,
    k_bias: Constant,
    v_weight: Constant,
    v_bias: Constant,
    out_weight: Constant,
    out_bias: Constant,
    heads: int,
) -> Feature:
    w_q, w_k, w_v, w_o = (v.tensor for v in (q_weight, k_weight, v_weight, out_weight))
    b_q, b_k, b_v, b_o = (v.tensor for v in (q_bias, k_bias, v_bias, out_bias))
    read = emit.read(h)
    inner, channels = w_q.shape
    if heads == 1 and inner == channels:
        keys = emit.map(read)
        folded = emit.pack("vector", (w_k, b_q), query_bias).address
        both = convolve(emit, Read((keys,)), (w_q, w_k, w_v, w_o), query_and_value, folded)
        bias = emit.pack("vector", (w_o, b_v, b_o), output_bias).address
        width = aligned(channels, ALIGN)
        q, v = _columns(emit.map(both), 0, width)
        return _attention(emit, (q, keys, v), heads, channels, bias)
    biases = emit.pack("vector", (b_q, b_k, b_v), stacked).address
    all_three = emit.map(convolve(emit, read, (w_q, w_k, w_v), stacked_products, biases))
    width = aligned(inner, ALIGN)
    mixed = _attention(emit, _columns(all_three, 0, width, 2 * width), heads, inner, None)
    own = emit.address(b_o)
    return convolve(emit, emit.read(mixed), (w_o,), product, own)


def _columns(map: Map, *begins: int) -> tuple[Map, ...]:
    """Maps of the same pixels, from channels on that lie within."""
    return tuple(Map(map.address + 4 * begin, map.stride, map.shape) for begin in begins)


def _attention(
    emit: Emitter, maps: tuple[Map, ...], heads: int, inner: int, bias: int | None
) -> Feature:
    q, k, v = maps
    batch, _, height, width = q.shape

    def make(y: Output) -> Arguments:
        return Attention(
            q=q.address,
            k=k.address,
            v=v.address,
            q_stride=q.stride,
            k_stride=k.stride,
            v_stride=v.stride,
            y=y,
            batch=batch,
            tokens=height * width,
            heads=heads,
            head_dim=inner // heads,
            scale=1 / math.sqrt(inner // heads),
        )

    return Feature((batch, inner, height, width), make, bias=bias)


# ---- weights; parts that lie side by side begin at multiples of ALIGN


def product(weight: Tensor) -> Tensor:
    """A linear layer's weights [out, in] as a 1x1 convolution's."""
    return weight[:, :, None, None]


def stacked(*parts: Tensor) -> Tensor:
    """Rows under one another, zeros between."""
    rows = []
    for part in parts:
        missing = part.new_zeros(aligned(len(part), ALIGN) - len(part), *part.shape[1:])
        rows += [part, missing]
    return torch.cat(rows)


def stacked_products(*weights: Tensor) -> Tensor:
    return product(stacked(*weights))


def query_and_value(w_q: Tensor, w_k: Tensor, w_v: Tensor, w_o: Tensor) -> Tensor:
    w_q, w_k, w_v, w_o = (weight.double() for weight in (w_q, w_k, w_v, w_o))
    return stacked_products(w_k.t() @ w_q, w_o @ w_v)


def query_bias(w_k: Tensor, b_q: Tensor) -> Tensor:
    a = w_k.double().t() @ b_q.double()
    return stacked(a, torch.zeros_like(a))


def output_bias(w_o: Tensor, b_v: Tensor, b_o: Tensor) -> Tensor:
    return w_o.double() @ b_v.double() + b_o.double()
