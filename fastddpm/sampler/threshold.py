"""Dynamic thresholding: x_0 of each sample clamped to a quantile of its magnitudes, then scaled.

    s = the quantile of |x_0| over the sample, within [1, maximum];   x_0 <- clamp(x_0, -s, s)/s

Saharia et al. 2022 (Imagen), section 2.3. The quantile interpolates between neighbours, as
torch.quantile does, which refuses more than 2^24 elements; two selections have no such limit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# Up to here float32 counts elements exactly, and torch.quantile takes a tensor.
COUNTED_IN_FLOAT32 = 2**24


@dataclass(frozen=True)
class Threshold:
    """quantile: in [0, 1]. maximum: of s. rounded_rank: as torch.quantile has it in float32."""

    quantile: float
    maximum: float
    rounded_rank: bool = False

    def __call__(self, x_0: Tensor) -> Tensor:
        """x_0 [B, ...] in float32 or float64, thresholded; NaN stays where it is."""
        flat = x_0.flatten(1)
        scale = self._quantile(flat.abs()).clamp(min=1, max=self.maximum).unsqueeze(1)
        return (torch.clamp(flat, -scale, scale) / scale).reshape(x_0.shape)

    def _quantile(self, magnitudes: Tensor) -> Tensor:
        """Of each row of [B, N]: [B]."""
        last = magnitudes.shape[1] - 1
        rank = self.quantile * last
        narrow = magnitudes.dtype == torch.float32 and last < COUNTED_IN_FLOAT32
        if self.rounded_rank and narrow:
            rank = float(np.float32(self.quantile) * np.float32(last))
        below = math.floor(rank)
        # The largest N - below of a row: below itself is the smallest of these.
        top = magnitudes.topk(last + 1 - below, dim=1).values
        low, high = top[:, -1], top[:, max(-2, -top.shape[1])]
        return torch.lerp(low, high, rank - below)
