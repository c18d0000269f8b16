"""Accumulators: registers and shared memory that products under way (wgmma) read and write.

From its issue until its warp group waits for it, a product may read its factors in shared memory
and write its sums at any time: to write the ones, or to touch the others but by another product, is
a fault. An accumulator that another instruction has written must pass a wgmma.fence first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np

from .cells import MANY, NOBODY, Cells, Requests
from .scalars import Array


class Accumulator:
    """One register: per lane, the group of the product that sums into it, and if it is fenced."""

    def __init__(self, lanes: int) -> None:
        self.group = np.full(lanes, NOBODY, np.int64)
        self.fenced = np.zeros(lanes, bool)


class Accumulators:
    """The accumulators of a machine by name, and the groups of products each lane has committed."""

    def __init__(self, lanes: int, names: Collection[str]) -> None:
        self.committed = np.zeros(lanes, np.int64)
        self.by_name = {name: Accumulator(lanes) for name in names}

    def fence(self, lanes: Array) -> None:
        """These lanes, as a mask, have passed a fence."""
        for accumulator in self.by_name.values():
            accumulator.fenced |= lanes

    def land(self, done: Callable[[Array], Array]) -> None:
        """Products of the groups that are ``done``, a mask of lanes, have ended."""
        for accumulator in self.by_name.values():
            accumulator.group[done(accumulator.group)] = NOBODY


@dataclass(frozen=True)
class Loan:
    """What one product reads. Per row: address, lane, group of products, cells [n, k]."""

    address: Array
    lane: Array
    group: Array
    at: Array

    def __getitem__(self, rows: Array) -> Loan:
        return Loan(self.address[rows], self.lane[rows], self.group[rows], self.at[rows])


class Loans:
    """Cells that products under way read."""

    def __init__(self, cells: Cells) -> None:
        self.cells = cells
        self.under_way: list[Loan] = []
        self.count = np.empty(0, np.int32)  # of each cell's products, once there has been one

    def lend(self, loan: Loan) -> None:
        """Begin a product, whose cells have been read."""
        if not len(self.count):
            self.count = np.zeros(len(self.cells.values), np.int32)
        np.add.at(self.count, loan.at, 1)
        self.under_way.append(loan)

    def land(self, ready: Callable[[Loan], Array], who: Callable[[Loan], Requests]) -> None:
        """End the rows of products that are ``ready``: they have read until now, every warp."""
        left = []
        for loan in self.under_way:
            rows = ready(loan)
            done = loan[rows]
            np.add.at(self.count, done.at, -1)
            self.cells.mark_readers(done.at, who(done))
            self.cells.reader_warp[done.at] = MANY
            if not rows.all():
                left.append(loan[~rows])
        self.under_way = left

    def check(self, at: Array, who: Requests) -> None:
        """Fault where a request writes what a product reads."""
        if len(self.count):
            who.refuse(self.count[at] > 0, "race: writes what a product, not waited for, reads")
