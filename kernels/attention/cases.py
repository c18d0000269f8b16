"""The calls at which attention is tested and measured."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Case(NamedTuple):
    """One call. `together`: q, k and v are views of one map of 3 C channels."""

    name: str
    batch: int
    tokens: int
    heads: int
    head_dim: int
    together: bool = False
    bias: bool = False
    row: bool = False
    residual: bool = False
    divisor: float = 1.0
    spread: float = 1.0  # of the scores, in units of a usual one

    @property
    def channels(self) -> int:
        return self.heads * self.head_dim

    @property
    def scale(self) -> float:
        return float(self.spread / self.head_dim**0.5)

    def tensors(self) -> dict[str, Tensor]:
        """The call's tensors by name, random float32, as the reference takes them."""
        generator = torch.Generator().manual_seed(len(self.name) + self.tokens + self.channels)
        shapes: dict[str, tuple[int, ...]]
        shapes = {name: (self.batch, self.tokens, self.channels) for name in "qkv"}
        if self.bias:
            shapes["bias"] = (self.channels,)
        if self.row:
            shapes["row"] = (self.batch, self.channels)
        if self.residual:
            shapes["residual"] = (self.batch, self.tokens, self.channels)
        return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}

    def flops(self) -> int:
        return 4 * self.batch * self.channels * self.tokens**2


# What the networks of the README ask for.
NETWORK_CASES = (
    Case("cifar", 1, 256, 1, 256),
    Case("cifar_folded", 1, 256, 1, 256, bias=True, residual=True),
    Case("cifar_4", 4, 256, 1, 256, bias=True, residual=True),
    Case("cifar_middle", 1, 16, 1, 256, bias=True, residual=True),
    Case("mnist", 4, 49, 2, 32),
    Case("openai_8", 1, 64, 4, 64, together=True),
    Case("openai_16", 1, 256, 4, 64, together=True),
    Case("openai_32", 1, 1024, 4, 64, together=True),
)

CASES = (
    Case("one_of_everything", 1, 1, 1, 1),
    Case("one_token", 3, 1, 2, 20, row=True),
    Case("one_channel", 2, 33, 3, 1, residual=True),
    Case("odd", 2, 45, 3, 7, bias=True, row=True, residual=True, divisor=2.0**0.5),
    Case("odd_heads_of_40", 3, 37, 2, 40, together=True, bias=True),
    Case("wide", 1, 50, 1, 500, residual=True),
    Case("a_key_beyond_a_panel", 1, 129, 1, 33),
    Case("many_tokens", 1, 2100, 1, 24),
    Case("sharp", 2, 70, 2, 32, spread=40.0),
)
