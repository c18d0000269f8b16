"""Visited: which timesteps a chain visits, and which one a tensor holds, without reading it."""

from __future__ import annotations

import operator
from typing import Any

from torch import Tensor

from fastddpm.ops.bound_step import transformed

# In `after`: behind the last timestep, and of a timestep that is not listed.
END, UNLISTED = -1, -2


class Visited:
    """A chain's timesteps, int64 [n], in the order in which they are visited.

    listed: the same numbers; without them they are read, for which the host waits.
    """

    def __init__(self, timesteps: Tensor, listed: list[int] | None = None) -> None:
        self.timesteps = timesteps
        self.listed: list[int] = timesteps.tolist() if listed is None else listed

    def number(self, timestep: Any) -> int | None:
        """The number in a timestep; None if only the device knows.

        An element of ``timesteps``, as a loop over them gives it, is known by its place in memory.
        """
        if not isinstance(timestep, Tensor):
            return operator.index(timestep)
        own = self.timesteps
        if (
            timestep.numel() == 1
            and timestep.dtype == own.dtype
            and timestep.device == own.device
            and not transformed()
        ):
            apart = own.itemsize * own.stride(0) or 1
            place, between = divmod(timestep.data_ptr() - own.data_ptr(), apart)
            if 0 <= place < len(self.listed) and not between:
                return self.listed[place]
        return int(timestep) if timestep.device.type == "cpu" else None

    def after(self, T: int) -> list[int]:
        """What follows each timestep in [0, T), END or UNLISTED."""
        after = [UNLISTED] * T
        pairs = list(zip(self.listed, [*self.listed[1:], END], strict=True))
        # Of a timestep that comes twice the first counts.
        for t, following in reversed(pairs):
            if 0 <= t < T:
                after[t] = following
        return after
