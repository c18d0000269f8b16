"""The optimiser and its learning rate.

rate(k) = η · min(1, (k + 1)/warm-up) · c(k)       k = 0, 1, ... counts optimisation steps
c(k) = 1, or ½ (1 + cos(π (k − warm-up)/(steps − warm-up))) after the warm-up
"""

import math

import torch
from torch import Tensor, nn

from fastddpm.train.config import TrainConfig


def learning_rate(config: TrainConfig, step: int) -> float:
    """The learning rate of optimisation step `step` (0, 1, ...)."""
    rise = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.lr_schedule == "constant" or step < config.warmup_steps:
        return config.learning_rate * rise
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))


def build_optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Adam (L2 weight decay) or AdamW (decoupled) on every parameter of `model`."""
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(
        model.parameters(),
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimiser's state as `parameter name/state name` -> tensor."""
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, Tensor]
) -> None:
    """The inverse of `optimizer_tensors`; the moments take the parameters' memory layout."""
    parameters = dict(model.named_parameters())
    for full_name, value in tensors.items():
        name, key = full_name.rsplit("/", 1)
        parameter = parameters[name]
        like = (
            torch.empty_like(parameter) if value.ndim else torch.empty((), device=parameter.device)
        )
        optimizer.state[parameter][key] = like.detach().copy_(value)
