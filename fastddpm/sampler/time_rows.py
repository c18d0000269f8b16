"""The time rows of single calls of a U-Net, with labels or without:

    rows = W a(embedding(t) + class) + b            [B, R],  W [R, E] of all residual blocks

A call at one timestep reads all of W for one row: 10 MB for the CIFAR-10 network, whose own weights
have put it out of the caches. So the rows of single timesteps are kept for the next chain.
"""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor
from torch.nn import functional as F

from fastddpm.unet import UNet

# A whole chain's; 20 MB for the CIFAR-10 network.
KEPT = 1024


class TimeRows:
    """The time rows of ``unet``, which lies on the CPU.

    Its matrix and its bias stay where they are; the weights are those of the last ``refresh``.
    """

    def __init__(self, unet: UNet) -> None:
        self._unet = unet
        self._projection = unet.row_projection()
        self._embedding = [tensor.clone() for tensor in self._embedding_now()]
        self._kept: dict[tuple[torch.dtype, float], Tensor] = {}

    def __call__(self, t: Tensor, labels: Tensor | None) -> Tensor:
        """[B, R] for timesteps t [B] and labels [B, ...]; [1, R] where all samples have one t and
        no labels. ValueError for labels against the config."""
        shared = len(t) > 0 and (len(t) == 1 or t.stride() == (0,))
        if labels is not None or not shared:
            return self._computed(t, labels)
        key = t.dtype, t[0].item()
        if key not in self._kept:
            if len(self._kept) == KEPT:
                self._kept.clear()
            self._kept[key] = self._computed(t[:1], None)
        return self._kept[key]

    def of(self, embedding: Tensor) -> Tensor:
        """The rows of embedded times and labels, [B, E] -> [B, R]."""
        return F.linear(self._unet.activation(embedding), *self._projection)

    def refresh(self) -> None:
        """Take over the U-Net's weights; rows that are kept go if these have other values."""
        own = *self._projection, *self._embedding
        new = *self._unet.row_projection(), *self._embedding_now()
        if all(map(torch.equal, own, new)):
            return
        for mine, value in zip(own, new, strict=True):
            mine.copy_(value)
        self._kept.clear()

    def _computed(self, t: Tensor, labels: Tensor | None) -> Tensor:
        of_labels = self._unet.embedded_labels(labels, len(t))
        embedding = self._unet.embedded_times(t)
        return self.of(embedding if of_labels is None else embedding + of_labels)

    def _embedding_now(self) -> list[Tensor]:
        parts = self._unet.time_embedding, self._unet.time_proj
        return [
            tensor.detach() for part in parts for tensor in chain(part.parameters(), part.buffers())
        ]
