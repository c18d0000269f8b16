"""The calls at which convolution is tested and measured."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Case(NamedTuple):
    """One call. Sizes are those of the input; `channels` of one map or of two that are joined."""

    name: str
    batch: int
    channels: tuple[int, ...]
    size: tuple[int, int]
    out: int
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    after: int = 0  # zero rows and columns beyond the last
    norm: bool = False
    activation: str | None = None
    row: bool = False
    residual: bool = False
    divisor: float = 1.0

    @property
    def out_size(self) -> tuple[int, int]:
        added = self.padding + self.after - self.kernel
        height, width = ((own + added) // self.stride + 1 for own in self.size)
        return height, width

    def tensors(self) -> dict[str, Any]:
        """The call's tensors by name, random float32, as the reference takes them."""
        generator = torch.Generator().manual_seed(len(self.name) + sum(self.channels) + self.out)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        depth = sum(self.channels) * self.kernel**2
        weight = normal(self.out, sum(self.channels), self.kernel, self.kernel) / depth**0.5
        found: dict[str, Any] = {
            "maps": [normal(self.batch, c, *self.size) for c in self.channels],
            "weight": weight,
            "bias": normal(self.out),
        }
        if self.norm:
            found["norm"] = normal(self.batch, 3, sum(self.channels))
        if self.row:
            found["row"] = normal(self.batch, self.out)
        if self.residual:
            found["residual"] = normal(self.batch, self.out, *self.out_size)
        return found

    def settings(self) -> dict[str, Any]:
        """The call's other arguments."""
        settings: dict[str, Any] = {"size": self.out_size, "activation": self.activation}
        return settings | {
            "stride": self.stride,
            "padding": self.padding,
            "divisor": self.divisor,
        }

    def flops(self) -> int:
        height, width = self.out_size
        depth = sum(self.channels) * self.kernel**2
        return 2 * self.batch * height * width * depth * self.out


# What the networks of the README ask for.
NETWORK_CASES = (
    Case("shortcut_32", 1, (256, 128), (32, 32), 128),
    Case("shortcut_32_even", 1, (128, 128), (32, 32), 128),
    Case("shortcut_16", 1, (256, 256), (16, 16), 256),
    Case("shortcut_8", 1, (256, 256), (8, 8), 256),
    Case("shortcut_4", 1, (256, 256), (4, 4), 256),
    Case("shortcut_one_map", 1, (128,), (16, 16), 256),
    Case("projection", 1, (256,), (16, 16), 256, norm=True),
    Case("projection_out", 1, (256,), (16, 16), 256, residual=True),
    Case("projections_together", 1, (256,), (16, 16), 768, norm=True),
    Case("halve_32", 1, (128,), (32, 32), 128, 3, 2, 0, after=1),
    Case("halve_16", 1, (256,), (16, 16), 256, 3, 2, 0, after=1),
    Case("halve_8", 1, (256,), (8, 8), 256, 3, 2, 0, after=1),
    Case("conv_in_cifar", 1, (3,), (32, 32), 128, 3, 1, 1, after=1),
    Case("conv_in_mnist", 1, (1,), (28, 28), 32, 3, 1, 1, after=1),
    Case("rows_of_time", 1, (512,), (10, 1), 4992, activation="silu"),
)

CASES = (
    # Fewer pixels than some teams have threads, and fewer channels still.
    Case("few_pixels", 1, (20,), (4, 4), 8),
    Case("one_by_one", 1, (1,), (1, 1), 1),
    Case("one_pixel", 3, (20,), (1, 1), 33, row=True, activation="silu"),
    Case("one_pixel_3x3", 2, (5,), (1, 1), 7, 3, 1, 1, after=1),
    Case("three", 2, (3,), (7, 7), 3, 3, 1, 1, after=1, row=True, residual=True),
    Case("odd_5x9", 3, (17,), (5, 9), 50, 3, 1, 1, after=1, norm=True, activation="silu"),
    Case("odd_joined", 3, (13, 6), (5, 9), 31, norm=True, activation="silu", divisor=2.0**0.5),
    Case("joined_3x3", 2, (5, 30), (4, 6), 12, 3, 2, 1, after=1, norm=True, row=True),
    Case("joined_one", 2, (1, 1), (7, 7), 65, norm=True),
    Case("symmetric_stride_2", 2, (24,), (9, 7), 40, 3, 2, 1, after=1, residual=True),
    Case("stride_2_after", 3, (16,), (8, 8), 16, 3, 2, 0, after=1),
    Case("stride_3", 1, (8,), (10, 11), 24, 3, 3, 0),
    Case("pixels_1x1_stride_2", 2, (40,), (7, 9), 20, 1, 2, 0),
    Case("padded_1x1", 1, (4,), (3, 3), 4, 1, 1, 1, after=1),
    Case("small_maps", 5, (64,), (2, 2), 48, row=True, residual=True, divisor=3.0),
    Case("many_pixels", 2, (33,), (28, 28), 19, 1, residual=True, row=True),
    Case("in_place", 2, (48,), (13, 1), 100, residual=True),
    Case("stride_of_4096_bytes", 1, (1024,), (31, 1), 40),
    Case("deep", 2, (300,), (4, 4), 40, 3, 1, 1, after=1, norm=True, activation="silu"),
)
