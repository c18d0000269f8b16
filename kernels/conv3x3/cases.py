"""The calls at which the 3x3 convolutions are tested and measured: the CPU program's, with all that
surrounds it, and the GPU's alone."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Case(NamedTuple):
    """One call. `shape` is that of the output, [B, C', H, W]; C1 + joined channels go in."""

    name: str
    shape: tuple[int, int, int, int]
    channels: int  # C1
    joined: int = 0  # channels of the skip
    norm: bool = False
    activation: str | None = None
    doubled: bool = False
    row: bool = False
    residual: bool = False
    divisor: float = 1.0
    mean: float = 0.0  # the bias, in units of the output's standard deviation

    def tensors(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """The call's tensors by name, random."""
        generator = torch.Generator().manual_seed(len(self.name) + sum(self.shape))
        batch, out, height, width = self.shape
        inputs = self.channels + self.joined

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float32).to(dtype)

        size = (height // 2, width // 2) if self.doubled else (height, width)
        found = {"x": normal(batch, self.channels, *size)}
        if self.joined:
            found["skip"] = normal(batch, self.joined, *size)
        found["weight"] = normal(out, inputs, 3, 3) / (9 * inputs) ** 0.5
        found["bias"] = normal(out) + self.mean
        if self.norm:
            found["norm"] = normal(batch, 3, inputs) * 0.3 + torch.tensor([[0], [1.0], [0]])
        if self.row:
            found["row"] = normal(batch, out)
        if self.residual:
            found["residual"] = normal(*self.shape)
        return found

    def settings(self) -> dict[str, Any]:
        """The call's other arguments."""
        return {"activation": self.activation, "doubled": self.doubled, "divisor": self.divisor}

    def flops(self) -> float:
        """Of the 36 products of each tile of 4x4 outputs."""
        batch, out, height, width = self.shape
        tiles = batch * -(-height // 4) * -(-width // 4)
        return 2.0 * 36 * tiles * out * (self.channels + self.joined)


def block(name: str, out: int, size: int, channels: int, joined: int = 0) -> Case:
    """The first convolution of a residual block."""
    return Case(name, (1, out, size, size), channels, joined, True, "silu", row=True)


# The convolutions of the network for CIFAR-10 that take its time, one sample each.
NETWORK = (
    block("32_128_128", 128, 32, 128),
    block("32_256_128_joined", 128, 32, 128, 128),
    block("32_384_128_joined", 128, 32, 256, 128),
    block("16_256_256", 256, 16, 256),
    block("16_512_256_joined", 256, 16, 256, 256),
    block("8_256_256", 256, 8, 256),
    block("8_512_256_joined", 256, 8, 256, 256),
    block("4_256_256", 256, 4, 256),
    Case("8_to_16", (1, 256, 16, 16), 256, doubled=True),
    Case("16_to_32", (1, 256, 32, 32), 256, doubled=True),
)

CASES = (
    Case("plain", (2, 32, 8, 8), 32),
    Case("first", (2, 64, 12, 12), 3),
    Case("last", (2, 3, 12, 12), 64, norm=True, activation="silu"),
    Case("one_channel", (3, 1, 28, 28), 1, norm=True),
    Case("all", (3, 48, 12, 8), 40, 24, True, "silu", row=True, residual=True, divisor=1.5),
    Case("residual", (2, 64, 16, 16), 64, norm=True, activation="silu", residual=True),
    Case("joined_inside_a_vector", (2, 20, 7, 7), 13, 9, True, "silu"),
    Case("joined_wide", (1, 70, 8, 8), 100, 97, True, row=True),
    Case("activated", (1, 17, 6, 10), 18, activation="silu", residual=True),
    Case("mnist_28", (2, 32, 28, 28), 32, norm=True, activation="silu", row=True),
    Case("mnist_7", (5, 64, 7, 7), 64, 32, True, "silu", residual=True),
    Case("odd", (3, 33, 5, 9), 35, norm=True),
    Case("one_pixel", (4, 16, 1, 1), 16),
    Case("one_row", (2, 8, 1, 13), 24, residual=True),
    Case("wide", (1, 16, 6, 300), 16),
    # Blocks of 16 lines of tiles, and one of 2.
    Case("tall", (1, 48, 968, 32), 4),
    Case("doubled", (2, 32, 16, 16), 32, doubled=True, residual=True),
    Case("doubled_odd", (2, 24, 14, 10), 20, 7, True, "silu", doubled=True),
    # Phase by phase, of 5 x 4 tiles, the last of 3 rows and 1 column.
    Case("phases", (3, 40, 38, 26), 20, 7, True, "silu", doubled=True, row=True, residual=True),
    Case("phases_two_rows", (2, 16, 36, 32), 24, doubled=True, residual=True),
    Case("phases_deep", (1, 20, 34, 32), 300, doubled=True, divisor=1.5),
    Case("deep", (2, 32, 4, 4), 700, norm=True, activation="silu"),
    Case("far_from_zero", (2, 16, 8, 8), 16, mean=1000.0),
    *NETWORK,
)

# x and weight alone, in half precision, channels_last: every tile of the GPU kernel, and what lies
# beyond its last pixel.
ALONE = (
    Case("128_pixels", (16, 128, 32, 32), 128),
    Case("64_pixels_128", (16, 256, 16, 16), 256),
    Case("64_pixels_64", (4, 128, 32, 32), 128),
    Case("64_pixels_32", (4, 256, 16, 16), 256),
    Case("32_pixels", (1, 128, 32, 32), 128),
    Case("16_pixels", (1, 256, 16, 16), 512),
    Case("16_pixels_16", (1, 256, 8, 8), 512),
    Case("few", (2, 16, 3, 5), 32),
    Case("tail", (2, 48, 7, 9), 96),
    Case("mnist_28", (1, 64, 28, 28), 64),
    Case("one_pixel", (1, 32, 1, 1), 64),
    Case("no_image", (0, 32, 8, 8), 32),
)
