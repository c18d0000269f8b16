"""The moving average of the parameters: ema ← d·ema + (1 − d)·θ after every optimisation step.

Only parameters are averaged; buffers (tables, counters) are copied as they are. With warm-up the
decay of update k = 0, 1, ... is d_k = min(d, (1 + k)/(10 + k)), so that early averages are not
held by the initial weights (TensorFlow's ExponentialMovingAverage with num_updates).
"""

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


class ExponentialMovingAverage(Generic[Model]):
    """An averaged twin of `model`, at `self.model`, in evaluation mode and without gradients."""

    def __init__(self, model: Model, decay: float, *, warmup: bool = False) -> None:
        if not 0.0 <= decay <= 1.0:
            raise ValueError(f"decay: expected 0 to 1, got {decay}")
        self.decay, self.warmup = decay, warmup
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    def decay_at(self, update: int) -> float:
        """The decay of update number `update` (0, 1, ...)."""
        return min(self.decay, (1 + update) / (10 + update)) if self.warmup else self.decay

    @torch.no_grad()
    def update(self, model: Model, update: int) -> None:
        """Moves the average towards `model`; `update` counts from 0."""
        averaged: list[Tensor] = list(self.model.parameters())
        current: list[Tensor] = list(model.parameters())
        torch._foreach_lerp_(averaged, current, 1.0 - self.decay_at(update))
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)
