"""NaN or Inf in a chain, found on the device and reported with its timestep."""

from __future__ import annotations

import torch
from torch import Tensor


class FiniteWatch:
    """Remembers the first step at which a tensor was not finite, without waiting for the device.

    ``watch(i, *tensors)`` inside a step costs one reduction a tensor and writes one number on the
    device; ``check()``, called every so often from the host, is what waits.
    """

    def __init__(self, device: torch.device) -> None:
        # Step indices count down from T-1, so -1 can stand for "none so far".
        self._first = torch.full((1,), -1, dtype=torch.int64, device=device)

    def __call__(self, i: Tensor, *tensors: Tensor) -> None:
        """i: int64 [1], the index of the running step; tensors: of any shape."""
        for tensor in tensors:
            fresh = (self._first < 0) & ~torch.isfinite(tensor).all()
            self._first.copy_(torch.where(fresh, i, self._first))

    def check(self, timesteps: Tensor) -> None:
        """Raise FloatingPointError naming the timestep if anything was not finite.

        timesteps: int64 [T], the original timestep of each step index.
        """
        first = int(self._first.item())
        if first >= 0:
            raise FloatingPointError(
                f"NaN or Inf in the chain at timestep {int(timesteps[first])} "
                f"(step index {first}); a half-precision network may overflow where a float32 one "
                "does not, otherwise suspect the weights"
            )
