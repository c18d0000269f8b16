"""Is all as it was? Asked before every call of a network, so the loops over its tensors run in C.

    same tensors:  every module holds the same parameters, buffers and parts     (Slots)
    same places:   every tensor has the same address and strides                 (Marks.moved)
    no writes:     torch has counted no write to any                             (Marks.changed)

For 330 tensors in 270 modules it takes 0.1 ms, where a walk by name takes 3; and 0.4 ms where the
network's own weights have put all of Python out of the caches, so little is kept to compare with.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor, nn

_version = attrgetter("_version")


class Marks:
    """Where tensors lay, and how often they had been written.

    It keeps their memory from being freed, so that no others can come to lie there unnoticed.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._tensors = tuple(tensors)
        # torch counts the writes to a tensor, but not to one made in inference mode.
        self._counted = tuple(t for t in self._tensors if not t.is_inference())
        self._storages: tuple[torch.UntypedStorage, ...] = tuple(
            tensor.untyped_storage() for tensor in self._tensors
        )
        self._places = self._places_now()
        self._writes = self._writes_now()

    def moved(self) -> bool:
        """Whether one lies elsewhere, or otherwise, by now."""
        return self._places_now() != self._places

    def changed(self) -> bool:
        """Whether one lies elsewhere, or was written since."""
        return self.moved() or self._writes_now() != self._writes

    def _places_now(self) -> tuple[int, int]:
        addresses = tuple(map(Tensor.data_ptr, self._tensors))
        return hash(addresses), hash(tuple(map(Tensor.stride, self._tensors)))

    def _writes_now(self) -> int:
        # A tensor's count only grows, so the sum tells.
        return sum(map(_version, self._counted))


class Slots:
    """What a module and its parts hold under their names."""

    def __init__(self, module: nn.Module) -> None:
        parts = [(m._parameters, m._buffers, m._modules) for m in module.modules()]
        self._all: list[dict[str, Any]] = list(chain.from_iterable(parts))
        self._sizes = list(map(len, self._all))
        self._filled = [slots for slots in self._all if slots]
        self._held = list(self._held_now())

    def tensors(self) -> list[Tensor]:
        """The parameters and buffers among it."""
        return [held for held in self._held if isinstance(held, Tensor)]

    def changed(self) -> bool:
        """Whether something was replaced, added or removed since."""
        if list(map(len, self._all)) != self._sizes:
            return True
        return not all(map(is_, self._held_now(), self._held))

    def _held_now(self) -> Iterator[Any]:
        return chain.from_iterable(map(dict.values, self._filled))


class Glance:
    """A module's slots, and the marks of the tensors in them."""

    def __init__(self, module: nn.Module) -> None:
        self._slots = Slots(module)
        self._marks = Marks(self._slots.tensors())

    def moved(self) -> bool:
        """Whether a tensor may lie elsewhere, or be another, by now."""
        return self._slots.changed() or self._marks.moved()

    def changed(self) -> bool:
        """Whether a tensor may lie elsewhere, be another, or have been written since."""
        return self._slots.changed() or self._marks.changed()
