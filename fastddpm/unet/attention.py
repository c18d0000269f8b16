"""Self-attention over the positions of a feature map (Ho et al. 2020, appendix B).

y = x + W_o softmax(Q Kᵀ / √d) V,   Q, K, V linear in GroupNorm(x),   d channels per head
"""

from __future__ import annotations

from typing import Any

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from fastddpm import ops
from fastddpm.unet.sum import Sum


class Attention(nn.Module):
    """Attention with a residual connection on [B, C, *spatial].

    Args:
        channels: C.
        heads, head_dim: heads × head_dim is the inner width (C wherever head_dim divides C).
        num_groups: groups of the normalisation before it; None: no normalisation.
        output_scale: the sum with the residual is divided by this.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        head_dim: int,
        *,
        num_groups: int | None,
        eps: float,
        output_scale: float = 1.0,
    ) -> None:
        super().__init__()
        inner = heads * head_dim
        self.heads, self.output_scale = heads, output_scale
        self.group_norm = nn.GroupNorm(num_groups, channels, eps=eps) if num_groups else None
        self.to_q = nn.Linear(channels, inner)
        self.to_k = nn.Linear(channels, inner)
        self.to_v = nn.Linear(channels, inner)
        self.to_out = nn.ModuleList([nn.Linear(inner, channels)])

    def forward(self, x: Sum) -> Sum:
        h = x.total() if self.group_norm is None else x.normalised(self.group_norm)
        y = Sum(self._attended(h), residual=x.total())
        return y if self.output_scale == 1 else Sum(y.total() / self.output_scale)

    def _attended(self, h: Tensor) -> Tensor:
        """The layer without its residual connection, [B, C, *spatial]."""
        if ops.is_recording():
            return ops.self_attention(h, *self.projections(), self.heads)
        # Contiguous here, or each of the three products copies them for itself.
        tokens = rearrange(h, "b c ... -> b (...) c").contiguous()
        q, k, v = (
            rearrange(projected, "b n (h d) -> b h n d", h=self.heads)
            for projected in self.queries_keys_values(tokens)
        )
        mixed = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.to_out[0](rearrange(mixed, "b h n d -> b n (h d)"))
        return out.transpose(1, 2).reshape(h.shape)

    def queries_keys_values(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """[B, N, C] -> three of [B, N, heads·d]."""
        return self.to_q(tokens), self.to_k(tokens), self.to_v(tokens)

    def projections(self) -> tuple[ops.Linear, ops.Linear, ops.Linear, ops.Linear]:
        """Of queries, keys, values and the output."""
        layers: tuple[Any, ...] = (self.to_q, self.to_k, self.to_v, self.to_out[0])
        q, k, v, out = (ops.Linear(layer.weight, layer.bias) for layer in layers)
        return q, k, v, out
