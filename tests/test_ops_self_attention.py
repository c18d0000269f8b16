"""ops.self_attention: against attention in float64, its registration, what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastddpm import ops
from fastddpm.ops.self_attention import SELF_ATTENTION, Linear

CASES = [(2, 8, (3, 5), 1), (1, 6, (4,), 3), (2, 4, (2, 2, 2), 2), (0, 8, (3, 5), 1)]


def layers(channels: int, dtype: torch.dtype = torch.float32) -> list[Linear]:
    generator = torch.Generator().manual_seed(channels)
    shapes = [((channels, channels), (channels,)) for _ in range(4)]
    return [
        Linear(*(torch.randn(s, generator=generator).to(dtype) for s in shape)) for shape in shapes
    ]


def written_out(h: Tensor, q: Linear, k: Linear, v: Linear, out: Linear, heads: int) -> Tensor:
    """Head by head, position by position, float64."""
    tokens = h.double().flatten(2).transpose(1, 2)
    projected = [tokens @ w.double().T + b.double() for w, b in (q, k, v)]
    mixed = []
    for q_h, k_h, v_h in zip(*(p.chunk(heads, dim=2) for p in projected), strict=True):
        scores = q_h @ k_h.transpose(1, 2) / q_h.shape[2] ** 0.5
        shares = scores.exp() / scores.exp().sum(2, keepdim=True)
        mixed.append(shares @ v_h)
    y = torch.cat(mixed, dim=2) @ out.weight.double().T + out.bias.double()
    return y.transpose(1, 2).reshape(h.shape)


@pytest.mark.parametrize(("batch", "channels", "spatial", "heads"), CASES)
def test_attention(batch: int, channels: int, spatial: tuple[int, ...], heads: int) -> None:
    torch.manual_seed(0)
    h = 0.3 * torch.randn(batch, channels, *spatial)
    of = layers(channels)
    y = ops.self_attention(h, *of, heads)
    assert y.shape == h.shape and y.is_contiguous()
    torch.testing.assert_close(y.double(), written_out(h, *of, heads), rtol=1e-5, atol=1e-5)


def test_opcheck() -> None:
    for batch, channels, spatial, heads in CASES:
        given = [part for layer in layers(channels) for part in layer]
        torch.library.opcheck(
            SELF_ATTENTION, (torch.randn(batch, channels, *spatial), *given, heads)
        )


def test_weights_that_do_not_fit() -> None:
    q, k, v, out = layers(8)
    with pytest.raises(ValueError, match=r"value must be \[8, 8\] and \[8\], got \[8, 6\]"):
        ops.self_attention(torch.zeros(1, 8, 3), q, k, Linear(v.weight[:, :6], v.bias), out, 2)
