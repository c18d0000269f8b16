"""An orthogonal transform that both sides draw: it spreads a step's information over its blocks.

q and p of one step differ where the image is uncertain, along a few edges; in rotated coordinates
they differ everywhere alike, so that blocks of equal size carry nearly equal information, and
z ~ N(0, I) stays that. Random signs, then ⌈log2 n⌉ + 1 rounds of

    a random permutation;  (a, b) -> ((a + b)/√2, (a - b)/√2)  of its two halves

which takes n log n operations and, being elementwise, has the same result in every batch. Where
variances differ between elements a rotation would mix them: then it is one permutation.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastddpm import ops
from fastddpm.noise import Purpose

# Beyond every place of a block (channel.py).
_SAMPLES = 1 << 62


class Rotation:
    """R for vectors of n elements; mixing: whether it is more than a permutation."""

    def __init__(self, seed: int, n: int, *, mixing: bool) -> None:
        rounds = math.ceil(math.log2(n)) + 1 if mixing and n > 1 else 1
        draws = ops.normal(
            seed, _SAMPLES + torch.arange(rounds + 1), 0, (n,), Purpose.CODING, device="cpu"
        )
        self._mixing = mixing and n > 1
        self._signs = torch.where(draws[0] < 0, -1.0, 1.0) if mixing else torch.ones(n)
        self._orders = [draw.argsort(stable=True) for draw in draws[1:]]

    def apply(self, v: Tensor) -> Tensor:
        """R v, float32 [n]."""
        v = v * self._signs
        for order in self._orders:
            v = self._halves(v[order])
        return v

    def undo(self, v: Tensor) -> Tensor:
        """Rᵀ v, float32 [n]."""
        for order in reversed(self._orders):
            back = torch.empty_like(v)
            back[order] = self._halves(v)
            v = back
        return v * self._signs

    def _halves(self, v: Tensor) -> Tensor:
        """The butterflies, their own inverse; an odd last element stays."""
        if not self._mixing:
            return v
        half = len(v) // 2
        a, b = v[:half], v[half : 2 * half]
        return torch.cat([(a + b) * math.sqrt(0.5), (a - b) * math.sqrt(0.5), v[2 * half :]])
