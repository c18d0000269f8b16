"""Many tensors copied at once: on a GPU a launch for each costs more than the copies."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


@torch.no_grad()
def copy_into(places: Iterable[Tensor], values: Iterable[Tensor]) -> None:
    """place.copy_(value) for each pair; dtypes, devices and strides may differ.

    Raises ValueError for more of one than of the other.
    """
    alike: tuple[list[Tensor], list[Tensor]] = [], []
    for place, value in zip(places, values, strict=True):
        # A single pair of other strides would send all of them one by one.
        if place.device == value.device and place.stride() == value.stride():
            alike[0].append(place)
            alike[1].append(value)
        else:
            place.copy_(value)
    if alike[0]:
        torch._foreach_copy_(*alike)
