"""Between torch's order and maps: the specification its fast twin agrees with.

    to = (from · factor + offset) / divisor

In float32, every operation rounded by itself. The divisor is a number, or [B, 1, 1] of the samples.
"""

from __future__ import annotations

from torch import Tensor


def into_map(
    planes: Tensor, factor: float = 1.0, offset: float = 0.0, divisor: float | Tensor = 1.0
) -> Tensor:
    """[B, P, C] from planes [B, C, P]."""
    return (planes.transpose(1, 2) * factor + offset) / divisor


def from_map(
    pixels: Tensor, factor: float = 1.0, offset: float = 0.0, divisor: float | Tensor = 1.0
) -> Tensor:
    """[B, C, P] from pixels [B, P, C]."""
    return (pixels.transpose(1, 2) * factor + offset) / divisor
