"""The calls at which pointwise is tested and measured."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Case(NamedTuple):
    """One call. `shape` is that of x, [B, C1, H, W]; C = C1 + joined."""

    name: str
    shape: tuple[int, int, int, int]
    joined: int = 0
    norm: bool = False
    activation: str | None = None
    resample: str = "none"
    bias: bool = False
    row: bool = False
    residual: bool = False
    divisor: float = 1.0
    statistics: bool = False

    @property
    def channels(self) -> int:
        return self.shape[1] + self.joined

    @property
    def written(self) -> tuple[int, int, int, int]:
        """The shape of y."""
        batch, _, height, width = self.shape
        if self.resample == "halve":
            return batch, self.channels, height // 2, width // 2
        factor = 2 if self.resample == "double" else 1
        return batch, self.channels, factor * height, factor * width

    def tensors(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """The call's tensors by name, random, drawn in float32."""
        generator = torch.Generator().manual_seed(len(self.name) + sum(self.shape))

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float32).to(dtype)

        batch, channels = self.shape[0], self.channels
        found = {"x": normal(*self.shape)}
        if self.joined:
            found["skip"] = normal(batch, self.joined, *self.shape[2:])
        if self.norm:
            found["norm"] = normal(batch, 3, channels)
        if self.bias:
            found["bias"] = normal(channels)
        if self.row:
            found["row"] = normal(batch, channels)
        if self.residual:
            found["residual"] = normal(*self.written)
        return found

    def settings(self) -> dict[str, Any]:
        """The call's other arguments."""
        return {
            "activation": self.activation,
            "resample": self.resample,
            "divisor": self.divisor,
        }

    def bytes_moved(self, itemsize: int = 4) -> int:
        """The least traffic: every map read once, y written once."""
        batch, _, height, width = self.shape
        written = torch.Size(self.written).numel()
        return itemsize * (batch * self.channels * height * width + written * (1 + self.residual))


CASES = (
    Case("copy", (2, 64, 8, 8)),
    Case("norm_silu", (2, 128, 16, 16), norm=True, activation="silu"),
    Case("norm_silu_halved", (2, 96, 16, 16), norm=True, activation="silu", resample="halve"),
    Case("norm_silu_doubled", (2, 96, 8, 8), norm=True, activation="silu", resample="double"),
    Case("joined", (2, 64, 8, 8), joined=32, statistics=True),
    Case("joined_odd", (3, 3, 7, 7), joined=13, norm=True, activation="silu", residual=True),
    Case("joined_odd_halved", (2, 19, 6, 10), joined=14, norm=True, resample="halve"),
    Case("joined_one", (2, 1, 5, 9), joined=1, activation="silu", bias=True),
    Case("halved_twice_odd", (1, 3, 14, 10), resample="halve", statistics=True),
    Case("doubled_odd", (2, 5, 7, 5), resample="double", residual=True, statistics=True),
    Case("everything", (2, 40, 9, 6), norm=True, activation="silu", bias=True, row=True,
         residual=True, divisor=1.5, statistics=True),
    Case("residual", (2, 256, 4, 4), residual=True, divisor=2.0**0.5, statistics=True),
    Case("mnist_7", (3, 64, 7, 7), norm=True, activation="silu", statistics=True),
    Case("one_pixel", (2, 24, 1, 1), norm=True, activation="silu", row=True, statistics=True),
    Case("one_channel", (4, 1, 28, 28), bias=True, statistics=True),
)  # fmt: skip
