"""The calls at which group_norm_silu is tested and measured."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Case(NamedTuple):
    """One call. `shape` is that of x, [B, C1, *spatial]; C = C1 + joined."""

    name: str
    shape: tuple[int, ...]
    num_groups: int
    row: str | None = None  # "each" sample its own, or "shared"
    residual: bool = False
    joined: int = 0  # channels of the skip
    film: bool = False
    activation: str | None = "silu"
    keep_total: bool = True
    mean: float = 1.0  # of x, in units of its standard deviation

    @property
    def channels(self) -> int:
        return self.shape[1] + self.joined

    @property
    def sums(self) -> bool:
        """Whether there is a total besides x."""
        return self.row is not None or self.residual or self.joined > 0

    def tensors(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """The call's tensors by name, random; weight and bias float32, maps channels_last."""
        generator = torch.Generator().manual_seed(len(self.name) + sum(self.shape))
        batch, own, *spatial = self.shape

        def normal(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float32).to(device, dtype)

        def image(channels: int) -> Tensor:
            return normal(batch, *spatial, channels).movedim(-1, 1)

        found = {"x": image(own) + self.mean}
        for name in ("weight", "bias"):
            found[name] = normal(self.channels, dtype=torch.float32)
        if self.row is not None:
            found["row"] = normal(*((batch, own) if self.row == "each" else (own,)))
        if self.residual:
            found["residual"] = image(own)
        if self.joined:
            found["skip"] = image(self.joined)
        if self.film:
            # Two halves of one row, as a linear layer makes them.
            rows = normal(batch, 2 * self.channels)
            found["scale"], found["shift"] = rows.chunk(2, dim=1)
        return found

    def settings(self) -> dict[str, Any]:
        """The call's other arguments."""
        settings: dict[str, Any] = {"num_groups": self.num_groups, "eps": 1e-6}
        return settings | {"activation": self.activation, "keep_total": self.keep_total}

    def bytes_moved(self, itemsize: int = 4) -> int:
        """The least traffic of the call: every input read once, every result written once."""
        batch, own, *spatial = self.shape
        positions = batch * torch.Size(spatial).numel()
        maps = 2 * self.channels + (own if self.residual else 0)
        maps += self.channels if self.keep_total and self.sums else 0
        rows = own * {None: 0, "each": batch, "shared": 1}[self.row]
        rows += 2 * batch * self.channels if self.film else 0
        statistics = 2 * batch * self.num_groups
        return itemsize * (positions * maps + rows) + 4 * (2 * self.channels + statistics)


# What the networks of the README ask for, one sample or two: one-pass kernels.
CASES = (
    Case("cifar_32", (2, 128, 32, 32), 32, "each", keep_total=False),
    Case("cifar_32_residual", (1, 128, 32, 32), 32, "shared", True),
    Case("cifar_16_film", (2, 256, 16, 16), 32, "shared", film=True, keep_total=False),
    Case("cifar_16_joined", (1, 256, 16, 16), 32, "shared", True, joined=128),
    Case("cifar_8", (2, 256, 8, 8), 32, activation=None),
    Case("cifar_4_joined", (3, 256, 4, 4), 32, "each", True, joined=256),
    Case("mnist_28", (2, 32, 28, 28), 8, "each", keep_total=False),
    Case("mnist_28_joined", (1, 64, 28, 28), 8, "shared", True, joined=32),
    Case("mnist_7", (2, 64, 7, 7), 8, "each"),
    # Groups of three across the border of x and skip, and sizes that no power of two divides.
    Case("threes", (2, 16, 4, 4), 8, "shared", True, joined=8),
    Case("odd", (3, 12, 5, 7), 3, "each"),
    Case("one_group", (1, 6, 9, 1), 1, film=True, activation=None),
    Case("one_position", (2, 64, 1, 1), 8, "each"),
    # E[x²] − E[x]² would lose the variance here.
    Case("far_from_zero", (2, 32, 8, 8), 8, mean=1000.0),
    Case("empty_batch", (0, 8, 4, 4), 4, "each"),
    # Split into chunks of positions, whole and with a tail; wide groups; joined.
    Case("split_40", (1, 32, 40, 40), 8, "each", True),
    Case("split_64", (1, 64, 64, 64), 16, "each", keep_total=False),
    Case("split_wide", (1, 128, 32, 32), 2, "shared"),
    Case("split_tail", (1, 24, 37, 31), 8, "each", joined=24, film=True),
    Case("split_dropped", (1, 32, 40, 36), 4, "shared", True, joined=16, keep_total=False),
    # The second pass cuts groups of twelve, so that 32 channels fill its lanes.
    Case("split_cut", (2, 64, 36, 36), 8, "each", joined=32),
    # Not for the kernels.
    Case("one_dimensional", (2, 16, 33), 4, "each"),
    Case("three_dimensional", (1, 8, 3, 4, 5), 2),
)
