"""The time rows of a U-Net's call or chain in two parts, which a program computes apart:

    e    = embedding(t) + class                     [B, E], before the program, sample by sample
    rows = W a(e) + b                               [B, R], in it: W [R, E] of all residual blocks

W has 10 MB in the CIFAR-10 network; all threads of the program read it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastddpm.unet import UNet

# Embedded timesteps: a whole chain's; 2 MB for the CIFAR-10 network.
KEPT = 1024


def one_by_one(rows: Callable[..., Any], given: Sequence[Tensor]) -> Tensor:
    """rows(*given), each sample by itself: torch rounds products otherwise in other batches."""

    def at(first: int, end: int) -> Tensor:
        found: Tensor = rows(*(v[first:end] for v in given))
        return found

    count = len(given[0])
    if all(torch.equal(v, v[:1].expand_as(v)) for v in given):
        return at(0, 1).repeat_interleave(count, 0)
    return torch.cat([at(k, k + 1) for k in range(count)])


class TimeRows:
    """The time rows of ``unet``, which lies on the CPU.

    Their matrix and its bias stay where they are; the weights are those of the last ``refresh``.
    """

    def __init__(self, unet: UNet) -> None:
        self._unet = unet
        self._projection = unet.row_projection()
        self._embedding = [tensor.clone() for tensor in self._embedding_now()]
        self._kept: dict[tuple[torch.dtype, float], Tensor] = {}

    def embedded(self, t: Tensor, labels: Tensor | None) -> Tensor:
        """[B, E] for timesteps t [B] and labels [B, ...]; [1, E] where all samples have one t and
        no labels. ValueError for labels against the config."""
        if labels is not None or len(t) == 0:
            return one_by_one(self._computed, [t] if labels is None else [t, labels])
        times = t.tolist()
        if len(set(times)) == 1:
            return self._of_time(t[:1], times[0])
        return torch.cat([self._of_time(t[k : k + 1], time) for k, time in enumerate(times)])

    def of(self, embedding: Tensor) -> Tensor:
        """The rows of embedded times and labels, [B, E] -> [B, R]."""
        return F.linear(self._unet.activation(embedding), *self._projection)

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the U-Net's weights; what is kept goes if these have other values."""
        self._unet.row_projection(out=self._projection)
        now = self._embedding_now()
        if all(map(torch.equal, self._embedding, now)):
            return
        for own, new in zip(self._embedding, now, strict=True):
            own.copy_(new)
        self._kept.clear()

    def _of_time(self, t: Tensor, time: float) -> Tensor:
        """[1, E] for t [1], whose value is ``time``."""
        key = t.dtype, time
        if key not in self._kept:
            if len(self._kept) == KEPT:
                self._kept.clear()
            self._kept[key] = self._computed(t)
        return self._kept[key]

    def _computed(self, t: Tensor, labels: Tensor | None = None) -> Tensor:
        of_labels = self._unet.embedded_labels(labels, len(t))
        embedding = self._unet.embedded_times(t)
        return embedding if of_labels is None else embedding + of_labels

    def _embedding_now(self) -> list[Tensor]:
        parts = self._unet.time_embedding, self._unet.time_proj
        return [
            tensor.detach() for part in parts for tensor in chain(part.parameters(), part.buffers())
        ]
