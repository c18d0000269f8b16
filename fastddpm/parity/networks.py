"""Weights and inputs that are the same on every machine, and how near two outputs are."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastddpm.selfcheck.exact import drawn
from fastddpm.selfcheck.outcome import Errors, largest_difference

# Of the largest magnitude: networks sum in another order, and a Winograd transform rounds more.
RELATIVE = 1e-5


def randomised(network: nn.Module) -> nn.Module:
    """The network in evaluation mode, with weights that keep the size of what passes through; a
    fresh one is the zero function, which any wrong network would agree with."""
    with torch.no_grad():
        for number, parameter in enumerate(network.parameters()):
            values = drawn(number, tuple(parameter.shape))
            if parameter.dim() > 1:
                parameter.copy_(values * parameter[0].numel() ** -0.5)
            else:
                parameter.add_(0.1 * values)
    return network.eval()


def image(channels: int, size: int, number: int = 0) -> Tensor:
    """Normal values [2, channels, size, size]."""
    return drawn(1000 + number, (2, channels, size, size))


def add(errors: Errors, case: str, result: Tensor, expected: Tensor) -> None:
    """Compares to RELATIVE of the largest expected magnitude."""
    scale = float(expected.double().abs().max())
    errors.add(case, largest_difference(result, expected), RELATIVE * scale)
