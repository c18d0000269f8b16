"""Copies: cp.async into shared memory, which nobody may touch until it has been waited for.

From its issue to the wait of the lane that issued it, a copy may write at any time, so that every
access to its bytes is a fault, as is any before its issue that another warp made since the last
barrier. The wait makes the bytes visible to the lane that waits, and the next barrier to the block
(bar.warp.sync: to the warp). Lanes of a warp are checked against each other here, as nowhere else:
each waits for its own copies only. One that is under way when its lane exits is no fault.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .cells import NOBODY, Cells, Requests
from .scalars import Array


@dataclass(frozen=True)
class Copy:
    """What one instruction copies. Per row:

    address:    of the first byte.
    lane:       whose copy it is.
    group:      the number of the lane's groups of copies that it belongs to.
    at, values: the cells [n, k] and what they will hold.
    """

    address: Array
    lane: Array
    group: Array
    at: Array
    values: Array

    def __getitem__(self, rows: Array) -> Copy:
        parts = (self.address, self.lane, self.group, self.at, self.values)
        return Copy(*(part[rows] for part in parts))


class Copies:
    """The copies under way into some cells, and whose copy wrote a cell last."""

    def __init__(self, cells: Cells) -> None:
        self.cells = cells
        self.under_way: list[Copy] = []
        # Of each cell, once there has been a copy: the lane that copies into it, and if still.
        self.lane, self.pending = np.empty(0, np.int32), np.empty(0, bool)

    def issue(self, copy: Copy, who: Requests) -> None:
        """Begin a copy."""
        if not len(self.lane):
            self.lane = np.full(len(self.cells.values), NOBODY, np.int32)
            self.pending = np.zeros(len(self.cells.values), bool)
        self.check(copy.at, who, "writes")
        self.cells.check_store(copy.at, who)
        self.lane[copy.at] = copy.lane[:, None]
        self.pending[copy.at] = True
        # Where two rows copy into one cell, only the last is left to be seen.
        clash = self.lane[copy.at] != copy.lane[:, None]
        who.refuse(clash, "race: two copies write the same bytes")
        self.under_way.append(copy)

    def land(self, ready: Callable[[Copy], Array], who: Callable[[Copy], Requests]) -> None:
        """Let the rows of copies arrive that are ``ready``, as stores of theirs now."""
        left = []
        for copy in self.under_way:
            rows = ready(copy)
            done = copy[rows]
            self.pending[done.at] = False
            self.cells.put(done.at, done.values, who(done))
            if not rows.all():
                left.append(copy[~rows])
        self.under_way = left

    def join(self, together: Array) -> None:
        """These lanes, as a mask, have met: what landed before is visible to them all."""
        landed = np.flatnonzero((self.lane != NOBODY) & ~self.pending)
        self.lane[landed[together[self.lane[landed]]]] = NOBODY

    def check(self, at: Array, who: Requests, does: str) -> None:
        """Fault where a request ``does`` touch bytes that its lane must not touch yet."""
        if not len(self.lane):
            return
        who.refuse(self.pending[at], f"race: {does} what a copy, not waited for, writes")
        lane = self.lane[at]
        unseen = (
            (lane != NOBODY)
            & (lane != who.lane[:, None])
            & (self.cells.writer_epoch[at] == who.epoch[:, None])
        )
        who.refuse(
            unseen, f"race: {does} what another thread's copy, with no barrier between, writes"
        )

    def forget(self, at: Array) -> None:
        """These cells have been written by a plain store."""
        if len(self.lane):
            self.lane[at] = NOBODY
