"""The calls at which residual_sum and resampled_sum are tested and measured."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Case(NamedTuple):
    """One call on x [B, C, *spatial]."""

    name: str
    shape: tuple[int, ...]
    row: str | None = None  # "each" sample its own, or "shared"
    residual: bool = False
    resample: str | None = None
    keep_total: bool = True

    def tensors(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """The call's tensors by name, random; maps channels_last."""
        generator = torch.Generator().manual_seed(len(self.name) + sum(self.shape))
        batch, channels, *spatial = self.shape

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float32).to(device, dtype)

        found = {"x": normal(batch, *spatial, channels).movedim(-1, 1)}
        if self.row is not None:
            found["row"] = normal(*((batch, channels) if self.row == "each" else (channels,)))
        if self.residual:
            found["residual"] = normal(batch, *spatial, channels).movedim(-1, 1)
        return found

    def bytes_moved(self, itemsize: int = 4) -> int:
        """The least traffic of the call: every input read once, every result written once."""
        batch, channels, height, width = self.shape
        read = height * width * (2 if self.residual else 1)
        sums = self.row is not None or self.residual
        written = height * width if self.keep_total and sums else 0
        written += {None: 0, "pad": (height + 1) * (width + 1), "double": 4 * height * width}[
            self.resample
        ]
        rows = {None: 0, "each": batch, "shared": 1}[self.row]
        return itemsize * channels * (batch * (read + written) + rows)


CASES = (
    Case("cifar_32", (2, 128, 32, 32), "shared", True),
    Case("cifar_32_pad", (1, 128, 32, 32), "shared", True, "pad"),
    Case("cifar_16_double", (1, 256, 16, 16), "shared", True, "double", False),
    Case("mnist_7_double", (2, 64, 7, 7), "each", True, "double"),
    Case("odd_pad", (3, 6, 5, 7), "each", False, "pad"),
    Case("row", (2, 96, 3, 3), "each"),
    Case("pad_alone", (2, 32, 4, 4), resample="pad"),
    Case("double_alone", (2, 12, 3, 5), resample="double"),
    Case("empty_batch", (0, 8, 4, 4), "each", True, "pad"),
)
