"""The order of the data, as a pure function of (seed, draw number).

Draw n, counted over the whole run, is image `permutation(seed, epoch)[n mod N]` of epoch `n div
N`, where N is the number of images.  Mirroring and dropped labels come from the same generator.
So step k takes the draws k·B to (k+1)·B − 1, a batch may cross the end of an epoch, no image is
left out, and resuming needs no state.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Epoch:
    """One pass over the data: `index` int64 [N], `flip` bool [N], `drop_label` bool [N]."""

    index: Tensor
    flip: Tensor
    drop_label: Tensor


@dataclass(frozen=True)
class DataOrder:
    """Which image each draw takes, for `count` images.

    `flip` mirrors half of the draws; `label_dropout` is the share of draws that lose their label.
    """

    seed: int
    count: int
    flip: bool = False
    label_dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count: expected at least one image, got {self.count}")

    def epoch(self, number: int) -> Epoch:
        """The order of pass `number` (0, 1, ...)."""
        return _epoch(self, number)

    def draws(self, first: int, count: int) -> Epoch:
        """The draws `first` to `first + count − 1` of the run, as one batch of `count`."""
        parts: list[Epoch] = []
        while count > 0:
            number, position = divmod(first, self.count)
            taken = min(count, self.count - position)
            epoch, span = self.epoch(number), slice(position, position + taken)
            parts.append(Epoch(epoch.index[span], epoch.flip[span], epoch.drop_label[span]))
            first, count = first + taken, count - taken
        return Epoch(
            torch.cat([p.index for p in parts]),
            torch.cat([p.flip for p in parts]),
            torch.cat([p.drop_label for p in parts]),
        )


# Two entries: a batch may cross from one epoch into the next.
@lru_cache(maxsize=2)
def _epoch(order: DataOrder, number: int) -> Epoch:
    # An odd multiplier is a bijection modulo 2^64: two epochs of a run never share a seed.
    mixed = (order.seed + (number + 1) * 0x9E3779B97F4A7C15) % 2**64
    generator = torch.Generator().manual_seed(mixed - 2**63)
    index = torch.randperm(order.count, generator=generator)
    mirrored = torch.rand(order.count, generator=generator) < 0.5
    dropped = torch.rand(order.count, generator=generator) < order.label_dropout
    return Epoch(index, mirrored & order.flip, dropped)
