"""Sum: a feature map between two layers, as a sum that nobody has taken yet.

    total = concatenate(value + row + residual, skip)          by channels

A layer's output passes memory once where the next layer does its additions: the bias of the
convolution that made `value`, the shortcut of its residual block, the skip of the other half of
the U-Net. So a layer returns what is to be added, and the normalisation or the resampling that
comes next adds it while it reads, and writes the total back for those who need it later.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastddpm import ops
from fastddpm.unet.activation import ACTIVATIONS


class Sum:
    """value + row + residual, then skip joined by channels.

    value, residual: [B, C1, *spatial]. row: [B, C1] or [C1]. skip: [B, C2, *spatial].
    """

    def __init__(
        self,
        value: Tensor,
        *,
        row: Tensor | None = None,
        residual: Tensor | None = None,
        skip: Tensor | None = None,
    ) -> None:
        self.value, self.row, self.residual, self.skip = value, row, residual, skip

    def plus(self, residual: Tensor) -> Sum:
        """This map and a residual connection."""
        return Sum(self.value, row=self.row, residual=residual)

    def joined(self, skip: Tensor) -> Sum:
        """This map and a skip, by channels."""
        return Sum(self.value, row=self.row, residual=self.residual, skip=skip)

    def normalised(
        self,
        norm: nn.GroupNorm,
        act_fn: str | None = None,
        *,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        keep: bool = True,
    ) -> Tensor:
        """act(norm(total)·(1 + scale) + shift), [B, C, *spatial].

        act_fn: a name of ACTIVATIONS; None: none. scale, shift: [B, C]. keep: whether anybody reads
        the total afterwards; it is then known.
        """
        act = None if act_fn is None else ACTIVATIONS[act_fn]
        y, total = ops.group_norm_silu(
            *(self.value, norm.weight, norm.bias, norm.num_groups, norm.eps),
            row=self.row,
            residual=self.residual,
            skip=self.skip,
            scale=scale,
            shift=shift,
            activation="silu" if act is F.silu else None,
            keep_total=keep,
        )
        if keep:
            self._take(total)
        return y if act is None or act is F.silu else act(y)

    def resampled(self, resample: str, *, keep: bool = True) -> Tensor:
        """The total, padded ("pad") or enlarged ("double") as `ops.resampled_sum` says.

        keep: whether anybody reads the total itself afterwards; it is then known.
        """
        if self.skip is not None:
            self.total()
        y, total = ops.resampled_sum(
            self.value, row=self.row, residual=self.residual, resample=resample, total=keep
        )
        if keep:
            self._take(total)
        return y

    def total(self) -> Tensor:
        """The sum, [B, C, *spatial]; taken here unless a layer has done so in passing."""
        if self.row is not None or self.residual is not None:
            self.value = ops.residual_sum(self.value, row=self.row, residual=self.residual)
        if self.skip is not None:
            self.value = torch.cat([self.value, self.skip], dim=1)
        self._take(self.value)
        return self.value

    def _take(self, total: Tensor) -> None:
        self.value, self.row, self.residual, self.skip = total, None, None, None
