"""What a call's samples are to be, beside their noise."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Conditions:
    """All on the device.

    labels: [B, ...], or None.
    null_label, guidance: of a recipe that is guided.
    images, mask: [B, C, H, W] of a recipe with jumps, and bool, where the images are known.
    """

    labels: Tensor | None = None
    null_label: int = 0
    guidance: float = 1.0
    images: Tensor | None = None
    mask: Tensor | None = None

    def rows(self, batch: slice) -> Conditions:
        """Those of a part of the samples."""

        def part(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[batch]

        return replace(
            self, labels=part(self.labels), images=part(self.images), mask=part(self.mask)
        )

    def repeated(self, times: int) -> Conditions:
        """Of so many batches after each other."""

        def parts(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else torch.cat([tensor] * times)

        return replace(
            self, labels=parts(self.labels), images=parts(self.images), mask=parts(self.mask)
        )


NO_CONDITIONS = Conditions()
