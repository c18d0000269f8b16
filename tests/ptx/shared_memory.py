"""SharedMemory: every block's own, in a window of the address space that begins at SHARED_BASE."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .accumulators import Loan, Loans
from .cells import MANY, Cells, Requests
from .copies import Copies, Copy
from .scalars import UNSIGNED, Array

# Not zero, so that a null pointer shows.
SHARED_BASE = 1024


class SharedMemory:
    """``size`` bytes for each of ``blocks`` blocks, in cells of ``grain`` bytes."""

    def __init__(self, blocks: int, size: int, grain: int) -> None:
        self.size, self.grain = size, grain
        self.cells = Cells(blocks * (size // grain), grain)
        self.copies = Copies(self.cells)
        self.loans = Loans(self.cells)

    def load(self, addresses: Array, bits: int, count: int, who: Requests) -> Array:
        """``count`` values of ``bits`` each [n, count] from each address."""
        at = self._at(addresses, bits // 8 * count, who)
        self.copies.check(at, who, "reads")
        return np.ascontiguousarray(self.cells.load(at, who)).view(UNSIGNED[bits])

    def store(self, addresses: Array, values: Array, who: Requests) -> None:
        """Values [n, count] to each address."""
        at = self._at(addresses, values.itemsize * values.shape[1], who)
        self.copies.check(at, who, "writes")
        self.loans.check(at, who)
        self.cells.store(at, self._as_cells(values), who)
        self.copies.forget(at)

    def copy(self, addresses: Array, values: Array, group: Array, who: Requests) -> None:
        """Begin to copy values [n, count] to each address, of a group of copies each."""
        at = self._at(addresses, values.itemsize * values.shape[1], who)
        self.loans.check(at, who)
        self.copies.issue(Copy(addresses, who.lane, group, at, self._as_cells(values)), who)

    def atomic(
        self, addresses: Array, bits: int, update: Callable[[int, Array], Array], who: Requests
    ) -> Array:
        """Read, update and write one value at each address, one after another; the old values."""
        at = self._at(addresses, bits // 8, who)
        self.copies.check(at, who, "updates")
        self.loans.check(at, who)
        self.copies.forget(at)
        cell = self.cells.values.dtype
        old = self.cells.atomic(
            at, lambda row, old: update(row, old.view(UNSIGNED[bits])).view(cell), who
        )
        return np.ascontiguousarray(old).view(UNSIGNED[bits])[:, 0]

    def lend(self, addresses: Array, group: Array, fenced: Array, who: Requests) -> Array:
        """Eight numbers of 16 bits from each address to a product, of a group of products each.

        fenced: the epoch of the last fence between what instructions and what products see.
        """
        at = self._at(addresses, 16, who)
        self.copies.check(at, who, "reads")
        unseen = self.cells.writer_epoch[at] >= fenced[:, None]
        who.refuse(unseen, "race: reads what was written, no barrier and fence.proxy.async since")
        values = self.cells.load(at, who)
        self.cells.reader_warp[at] = MANY
        self.loans.lend(Loan(addresses, who.lane, group, at))
        return np.ascontiguousarray(values).view(np.uint16)

    def _as_cells(self, values: Array) -> Array:
        return np.ascontiguousarray(values).view(self.cells.values.dtype)

    def _at(self, addresses: Array, size: int, who: Requests) -> Array:
        offsets = addresses - SHARED_BASE
        outside = (offsets < 0) | (offsets + size > self.size)
        who.refuse(outside, f"outside the {self.size} bytes of shared memory")
        who.refuse(offsets % size != 0, f"misaligned: no multiple of {size} bytes")
        first = (who.slot[:, None] * self.size + offsets[:, None]) // self.grain
        at: Array = first + np.arange(size // self.grain)
        return at
