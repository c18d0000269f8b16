"""From gradients to the next weights: clip, Adam, moving average.

g ← g · min(1, c/‖g‖),   θ ← Adam(θ, g, rate(k)),   ema ← d_k·ema + (1 − d_k)·θ
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from fastddpm.train.config import TrainConfig
from fastddpm.train.ema import ExponentialMovingAverage
from fastddpm.train.optimizer import (
    build_optimizer,
    learning_rate,
    load_optimizer_tensors,
    optimizer_tensors,
)
from fastddpm.unet import UNet


class Update:
    """The optimiser and the moving average `ema` of `model`, under the settings of `config`."""

    def __init__(self, config: TrainConfig, model: UNet) -> None:
        self.config, self.model = config, model
        self.optimizer = build_optimizer(config, model)
        self.ema = ExponentialMovingAverage(model, config.ema_decay, warmup=config.ema_warmup)

    def apply(self, step: int) -> Tensor:
        """Update number `step` (0, 1, ...) with the gradients at hand, which it clears.

        Returns the norm of all gradients together before clipping, float32 [].
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, step)
        # Without clipping the norm is still measured: infinity clips nothing.
        limit = self.config.clip_norm or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(self.model, step)
        return norm

    def tensors(self) -> dict[str, Tensor]:
        """Weights, averages and moments, under model/, ema/ and optimizer/."""
        return {
            **_prefixed("model", self.model.state_dict()),
            **_prefixed("ema", self.ema.model.state_dict()),
            **_prefixed("optimizer", optimizer_tensors(self.optimizer, self.model)),
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes over what `tensors` gave."""
        self.model.load_state_dict(_under("model", tensors))
        self.ema.model.load_state_dict(_under("ema", tensors))
        load_optimizer_tensors(self.optimizer, self.model, _under("optimizer", tensors))


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = prefix + "/"
    return {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}
