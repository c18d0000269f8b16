"""A launch's tensors as regions of the emulated memory, and back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from .cells import Cells
from .faults import Fault
from .memory import GlobalMemory, Region
from .scalars import UNSIGNED, Array

if TYPE_CHECKING:
    from fastddpm.kernels.common.launch import Launch

Fill = Callable[[int, int], Array]


class Tensors:
    """The tensors of a launch, each at its address.

    regions:   the region of each argument; tensors that share a storage share one.
    addresses: where each argument begins.
    """

    def __init__(self, launch: Launch, in_place: Collection[str], fill: Mapping[str, Fill]) -> None:
        self.launch = launch
        self.tensors = {n: t for n, t in launch.arguments.items() if isinstance(t, torch.Tensor)}
        self.writes = [name for name in launch.writes if name in self.tensors]
        self.memory = GlobalMemory()
        self.regions: dict[str, Region] = {}
        self.addresses: dict[str, int] = {}
        for names in self._by_storage():
            tensors = {name: self.tensors[name] for name in names}
            region = self._add_region(tensors)
            if next(iter(tensors.values())).is_meta:
                region.make_sparse(_as_bits(fill.get(names[0]), region.cells.grain))
            else:
                self._copy_in(region, tensors, in_place)

    def _by_storage(self) -> Iterable[list[str]]:
        """Names of the tensors, those that share a storage together."""
        groups: dict[int, list[str]] = {}
        for name, tensor in self.tensors.items():
            # Nothing to share: an empty tensor's address is 0, as is one's on the meta device.
            address = 0 if tensor.is_meta else tensor.untyped_storage().data_ptr()
            groups.setdefault(address or -id(tensor), []).append(name)
        return groups.values()

    def _add_region(self, tensors: dict[str, torch.Tensor]) -> Region:
        """A region as large as the storage, in cells of the smallest element."""
        first = next(iter(tensors.values()))
        grain = min(tensor.element_size() for tensor in tensors.values())
        size = first.untyped_storage().nbytes()
        read_only = not any(name in self.writes for name in tensors)
        cells = Cells(0 if first.is_meta else size // grain, grain, read_only)
        address = 0 if first.is_meta else first.untyped_storage().data_ptr()
        region = Region("+".join(tensors), self.memory.place(address), size, cells)
        self.memory.regions.append(region)
        for name, tensor in tensors.items():
            self.regions[name] = region
            self.addresses[name] = region.base + tensor.storage_offset() * tensor.element_size()
        return region

    def _copy_in(
        self, region: Region, tensors: dict[str, torch.Tensor], in_place: Collection[str]
    ) -> None:
        cells = region.cells
        cells.values[:] = _contents(next(iter(tensors.values())), cells)
        region.legal = np.zeros(len(cells.values), bool)
        for name, tensor in tensors.items():
            mine = _elements(tensor, cells.grain)
            region.legal[mine] = True
            if name not in self.writes or name in in_place:
                cells.written[mine] = True

    def copy_out(self, name: str, complete: bool) -> None:
        """Bring an argument's new values back; a Fault if it should be complete and is not."""
        tensor, cells = self.tensors[name], self.regions[name].cells
        if tensor.is_meta:
            return
        mine = _elements(tensor, cells.grain)
        stored = cells.stored[mine]
        if complete and not stored.all():
            missing = f"{(~stored).sum()} of {len(mine)} elements of {name}"
            raise Fault(f"{self.launch.name}: {missing} are never written")
        # The others may be anybody's: they lie in a storage of the caller's.
        mine = mine[stored]
        _contents(tensor, cells)[mine] = cells.values[mine]


def _as_bits(fill: Fill | None, grain: int) -> Fill | None:
    if fill is None:
        return None
    return lambda start, count: np.ascontiguousarray(fill(start, count)).view(UNSIGNED[8 * grain])


def _contents(tensor: torch.Tensor, cells: Cells) -> Array:
    """The cells of a tensor's storage, shared with it."""
    whole = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
    return whole.numpy()[: len(cells.values) * cells.grain].view(cells.values.dtype)


def _elements(tensor: torch.Tensor, grain: int) -> Array:
    """The cells of a tensor's elements, in the order of their addresses."""
    held = np.zeros(tensor.untyped_storage().nbytes() // tensor.element_size(), bool)
    if tensor.numel():
        torch.as_strided(
            torch.from_numpy(held), tensor.shape, tensor.stride(), tensor.storage_offset()
        )[...] = True
    starts = np.flatnonzero(held)[:, None] * (tensor.element_size() // grain)
    return (starts + np.arange(tensor.element_size() // grain)).ravel()
