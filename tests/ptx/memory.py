"""GlobalMemory: one region for each tensor, far apart, with everything counted.

An access must lie in a tensor's own elements: past its end, before its start, or in a gap between
the rows of a strided view it is a fault, as is an access that is not a multiple of its own size.
A tensor too large to hold is sparse: it has its full size in the address space and memory for the
pages that the kernel touches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from .cells import Cells, Requests
from .faults import Unsupported
from .scalars import UNSIGNED, Array

# Regions begin here, a guard gap apart. Addresses need more than 32 bits, as on a GPU.
FIRST, GUARD = 0x7_0000_0000, 1 << 24
PAGE = 1 << 14  # cells


@dataclass
class Traffic:
    """Bytes that a kernel moves to and from one tensor.

    loaded, stored: each byte once for each program that touches it: the traffic to DRAM if caches
                    keep what one program reads again, and nothing between programs.
    load_issued, store_issued: each access counted, also those of lanes that hold copies.
    widths:         accesses by ("load" | "store" | "atomic", bits).
    """

    loaded: int = 0
    stored: int = 0
    load_issued: int = 0
    store_issued: int = 0
    widths: Counter[tuple[str, int]] = field(default_factory=Counter)


class Region:
    """The memory of one tensor, or of several that share a storage.

    base, size: its first address and its bytes.
    legal:      cells that belong to an element; None for all of them.
    fill:       (first cell, count) -> the values of a sparse region's page.
    """

    def __init__(self, name: str, base: int, size: int, cells: Cells) -> None:
        self.name, self.base, self.size, self.cells = name, base, size, cells
        self.legal: Array | None = None
        self.traffic = Traffic()
        self.pages: Array | None = None
        self.fill: Callable[[int, int], Array] | None = None
        self._touched: dict[str, list[Array]] = {"load": [], "store": []}

    def access(self, kind: str, offsets: Array, size: int, who: Requests) -> Array:
        """The cells [n, k] of an access of ``size`` bytes at each offset; counts it."""
        grain = self.cells.grain
        if size % grain:
            who.fail(0, f"accesses a part of an element of {self.name}")
        at = offsets[:, None] // grain + np.arange(size // grain)
        if self.legal is not None:
            who.refuse(~self.legal[at], f"outside the elements of {self.name}")
        if kind != "load" and self.cells.read_only:
            who.fail(0, f"writes {self.name}, which is not among the launch's writes")
        self._count(kind, at, size, who)
        return at if self.pages is None else self._resident(at)

    def _count(self, kind: str, at: Array, size: int, who: Requests) -> None:
        traffic, count = self.traffic, len(at)
        traffic.widths[kind, 8 * size] += count
        keys = (who.block[:, None].astype(np.int64) * (self.size + 1) + at).ravel()
        if kind != "store":
            traffic.load_issued += count * size
            self._touched["load"].append(keys)
        if kind != "load":
            traffic.store_issued += count * size
            self._touched["store"].append(keys)

    def settle(self) -> None:
        """Add up the bytes touched by the programs that have ended."""
        for kind, keys in self._touched.items():
            count = _distinct(np.concatenate(keys)) if keys else 0
            if kind == "load":
                self.traffic.loaded += count * self.cells.grain
            else:
                self.traffic.stored += count * self.cells.grain
            keys.clear()

    def make_sparse(self, fill: Callable[[int, int], Array] | None) -> None:
        """Hold no memory until it is touched."""
        self.fill = fill
        count = -(-self.size // self.cells.grain)
        self.pages = np.full(-(-count // PAGE), -1, np.int64)

    def _resident(self, at: Array) -> Array:
        """Cells of the whole region as cells of its pages in memory, brought in as needed."""
        assert self.pages is not None
        page = at // PAGE
        for new in np.unique(page[self.pages[page] < 0]):
            start = len(self.cells.values)
            self.cells.grow(PAGE)
            self.pages[new] = start // PAGE
            if self.fill is not None:
                values = self.fill(int(new) * PAGE, PAGE)
                self.cells.values[start:] = values.view(self.cells.values.dtype)
                self.cells.written[start:] = True
        return self.pages[page] * PAGE + at % PAGE

    def read(self, start: int, count: int) -> tuple[Array, Array]:
        """The values of cells start, start + 1, ... and whether the kernel stored each."""
        at = np.arange(start, start + count)
        at = at if self.pages is None else self._resident(at)
        return self.cells.values[at], self.cells.stored[at]


def _distinct(keys: Array) -> int:
    # Many times faster than np.unique, which hashes.
    keys.sort()
    return int(np.count_nonzero(np.diff(keys))) + 1


class GlobalMemory:
    """All regions, in the order of their addresses."""

    def __init__(self) -> None:
        self.regions: list[Region] = []

    def place(self, address: int) -> int:
        """The base of the next region: far beyond the last one, equal to address modulo 256."""
        end = self.regions[-1].base + self.regions[-1].size if self.regions else FIRST
        return -(-(end + GUARD) // 256) * 256 + address % 256

    def load(
        self, addresses: Array, bits: int, count: int, who: Requests, constant: bool = False
    ) -> Array:
        """``count`` values of ``bits`` each [n, count] from each address.

        constant: the values must not change while the kernel runs.
        """
        size = bits // 8 * count
        result = np.empty((len(addresses), count), UNSIGNED[bits])
        for region, rows, offsets in self._by_region(addresses, size, who):
            at = region.access("load", offsets, size, who[rows])
            if constant and not region.cells.read_only:
                raise Unsupported(f"a copy that goes on, of {region.name}, which the kernel writes")
            values = region.cells.load(at, who[rows])
            result[rows] = np.ascontiguousarray(values).view(UNSIGNED[bits])
        return result

    def store(self, addresses: Array, values: Array, who: Requests) -> None:
        """Values [n, count] to each address."""
        size = values.itemsize * values.shape[1]
        for region, rows, offsets in self._by_region(addresses, size, who):
            at = region.access("store", offsets, size, who[rows])
            mine = np.ascontiguousarray(values[rows]).view(region.cells.values.dtype)
            region.cells.store(at, mine, who[rows])

    def atomic(
        self, addresses: Array, bits: int, update: Callable[[int, Array], Array], who: Requests
    ) -> Array:
        """Read, update and write one value at each address, one after another; the old values."""
        result = np.empty(len(addresses), UNSIGNED[bits])
        for region, rows, offsets in self._by_region(addresses, bits // 8, who):
            at = region.access("atomic", offsets, bits // 8, who[rows])
            cell = region.cells.values.dtype

            def updated(row: int, old: Array, rows: Array = rows, cell: object = cell) -> Array:
                return update(int(rows[row]), old.view(UNSIGNED[bits])).view(cell)

            old = region.cells.atomic(at, updated, who[rows])
            result[rows] = np.ascontiguousarray(old).view(UNSIGNED[bits])[:, 0]
        return result

    def _by_region(
        self, addresses: Array, size: int, who: Requests
    ) -> Iterator[tuple[Region, Array, Array]]:
        """Each region that the addresses fall into, the rows in it and their offsets."""
        who.refuse(addresses % size != 0, f"misaligned: no multiple of {size} bytes")
        bases = np.array([region.base for region in self.regions])
        index = np.searchsorted(bases, addresses, side="right") - 1
        for number in np.unique(index):
            rows = np.flatnonzero(index == number)
            region = self.regions[max(number, 0)]
            offsets = addresses[rows] - region.base
            for row in np.flatnonzero((offsets < 0) | (offsets + size > region.size))[:1]:
                who.fail(
                    int(rows[row]),
                    f"outside {region.name}: byte {offsets[row]} of {region.size}",
                )
            yield region, rows, offsets
