"""Steps for the tests of the engines, each with something that a wrong engine gets wrong."""

from __future__ import annotations

import torch
from torch import Tensor

NUM_STEPS = 10


def affine(x: Tensor, i: Tensor) -> Tensor:
    """Order matters: the result tells which indices came in which order."""
    return x * 3 + i


class InPlace:
    """Writes the state in place, and reads a table through the index."""

    def __init__(self) -> None:
        self.table = torch.linspace(-1, 1, NUM_STEPS)

    def __call__(self, x: Tensor, i: Tensor) -> Tensor:
        return x.mul_(1.5).add_(self.table.index_select(0, i))


class Carrying:
    """Carries a network input and a count from step to step, and begins anew with every run.

    An engine that forgets ``begin``, or what its warm-up left behind, gets other numbers.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.table = torch.linspace(0.5, 1, NUM_STEPS)
        self.input = torch.full(shape, torch.nan)
        self.count = torch.full((1,), torch.nan)

    def begin(self, x: Tensor) -> None:
        self.input.copy_(x)
        self.count.zero_()

    def __call__(self, x: Tensor, i: Tensor) -> Tensor:
        self.count.add_(1)
        x.add_(self.input.tanh() * self.table.index_select(0, i) + self.count)
        self.input.copy_(x)
        return x


class Counting:
    """Bakes t in: counts in Python instead of reading i."""

    def __init__(self) -> None:
        self.t = NUM_STEPS

    def begin(self, x: Tensor) -> None:
        self.t = NUM_STEPS

    def __call__(self, x: Tensor, i: Tensor) -> Tensor:
        self.t -= 1
        return x * 2 + self.t
