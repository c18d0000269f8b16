"""Cells: memory that knows who touched it, so that races and uninitialised reads are faults.

A cell is the smallest unit that the kernel accesses (an element of a tensor). Blocks of a grid run
in no order, so what one block writes no other may read or write. Within a block, warps are ordered
by barriers alone: each cell keeps the epoch (barriers passed by the block) of its last write and of
its reads, and a write and another access by two warps in one epoch race. Lanes of one warp run in
step here and are not checked against each other, but for two values in one instruction. A store of
the value that already stands there, from the same block, is no race: Triton replicates small tiles
over lanes and lets each store its copy. Atomic operations do not race with each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from .scalars import UNSIGNED, Array

NOBODY, MANY, ATOMIC = -1, -2, -3


@dataclass(frozen=True)
class Requests:
    """Who accesses memory in one instruction: each lane with its block, warp and epoch.

    fail: raises a Fault for the request of this row, with a reason.
    """

    lane: Array
    block: Array
    slot: Array
    warp: Array
    epoch: Array
    fail: Callable[[int, str], NoReturn]

    def __getitem__(self, rows: Array) -> Requests:
        def fail(row: int, reason: str) -> NoReturn:
            self.fail(int(rows[row]), reason)

        marks = (self.lane, self.block, self.slot, self.warp, self.epoch)
        return Requests(*(mark[rows] for mark in marks), fail)

    def refuse(self, wrong: Array, reason: str) -> None:
        """Fault at the first row with anything wrong; wrong is [n] or [n, k]."""
        if wrong.any():
            rows = wrong if wrong.ndim == 1 else wrong.any(axis=1)
            self.fail(int(np.flatnonzero(rows)[0]), reason)


class Cells:
    """``count`` cells of ``grain`` bytes each."""

    def __init__(self, count: int, grain: int, read_only: bool = False) -> None:
        self.grain = grain
        self.read_only = read_only
        self.values = np.zeros(count, UNSIGNED[8 * grain])
        self.written = np.zeros(count, bool)  # holds a value
        self.stored = np.zeros(count, bool)  # by the kernel
        tracked = 0 if read_only else count
        self.writer, self.reader = (np.full(tracked, NOBODY, np.int32) for _ in "12")
        self.writer_warp, self.reader_warp = (np.full(tracked, NOBODY, np.int16) for _ in "12")
        self.writer_epoch, self.reader_epoch = (np.full(tracked, -1, np.int32) for _ in "12")

    def grow(self, count: int) -> None:
        """Append cells that nobody has touched."""
        more = Cells(count, self.grain, self.read_only)
        for name, value in vars(self).items():
            if isinstance(value, np.ndarray):
                setattr(self, name, np.concatenate([value, getattr(more, name)]))

    def load(self, at: Array, who: Requests) -> Array:
        """The values of cells ``at`` [n, k], one row a request."""
        who.refuse(~self.written[at], "reads what nobody has written")
        if not self.read_only:
            self._check_writers(at, who, "reads what {} writes", None)
            self.mark_readers(at, who)
        return self.values[at]

    def store(self, at: Array, values: Array, who: Requests) -> None:
        """Write values [n, k] into cells ``at`` [n, k]."""
        self.check_store(at, who, values)
        self.put(at, values, who)

    def check_store(self, at: Array, who: Requests, values: Array | None = None) -> None:
        """Fault where a store would race: of these values, or of any."""
        self._check_writers(at, who, "writes what {} writes", values)
        self._check_readers(at, who)

    def put(self, at: Array, values: Array, who: Requests) -> None:
        """The store itself, once it is checked."""
        self._mark_writers(at, who, who.block)
        self.values[at] = values
        who.refuse(self.values[at] != values, "two threads write different values in one store")

    def atomic(self, at: Array, update: Callable[[int, Array], Array], who: Requests) -> Array:
        """Replace each cell by update(row, old value), one request after another; the old ones."""
        who.refuse(~self.written[at], "reads what nobody has written")
        self._check_writers(at, who, "updates what {} writes by a plain store", None, (ATOMIC,))
        self._check_readers(at, who)
        old = np.empty(at.shape, self.values.dtype)
        for row, cells in enumerate(at):
            old[row] = self.values[cells]
            self.values[cells] = update(row, old[row])
        self._mark_writers(at, who, np.full_like(who.block, ATOMIC))
        return old

    def _check_writers(
        self,
        at: Array,
        who: Requests,
        reason: str,
        values: Array | None,
        harmless: tuple[int, ...] = (),
    ) -> None:
        writer = self.writer[at]
        other = ~np.isin(writer, (NOBODY, *harmless)) & (writer != who.block[:, None])
        who.refuse(other, "race: " + reason.format("another program"))
        unordered = (
            (writer == who.block[:, None])
            & (self.writer_warp[at] != who.warp[:, None])
            & (self.writer_epoch[at] == who.epoch[:, None])
        )
        if values is not None:
            unordered &= self.values[at] != values
        who.refuse(unordered, "race: " + reason.format("another warp, with no barrier between,"))

    def _check_readers(self, at: Array, who: Requests) -> None:
        reader = self.reader[at]
        other = (reader != NOBODY) & (reader != who.block[:, None])
        who.refuse(other, "race: writes what another program reads")
        unordered = (
            (reader == who.block[:, None])
            & (self.reader_warp[at] != who.warp[:, None])
            & (self.reader_epoch[at] == who.epoch[:, None])
        )
        who.refuse(unordered, "race: writes what another warp reads, with no barrier between")

    def _mark_writers(self, at: Array, who: Requests, block: Array) -> None:
        self.written[at] = True
        self.stored[at] = True
        self.writer[at] = block[:, None]
        self.writer_warp[at] = who.warp[:, None]
        self.writer_epoch[at] = who.epoch[:, None]
        # Where two rows wrote one cell, only the last is left to be seen.
        who.refuse(
            self.writer[at] != block[:, None], "race: two programs write the same cell in one store"
        )

    def mark_readers(self, at: Array, who: Requests) -> None:
        """Write down who reads these cells, now."""
        block, warp, epoch = who.block[:, None], who.warp[:, None], who.epoch[:, None]
        reader = self.reader[at]
        self.reader[at] = np.where((reader == NOBODY) | (reader == block), block, MANY)
        same = (self.reader_epoch[at] == epoch) & (self.reader_warp[at] != warp)
        self.reader_warp[at] = np.where(same, MANY, warp)
        self.reader_epoch[at] = epoch
        # Rows of one instruction that read the same cell overwrite each other's marks.
        for marks, mine in ((self.reader, block), (self.reader_warp, warp)):
            clash = (marks[at] != mine) & (marks[at] != MANY)
            marks[at[clash]] = MANY
