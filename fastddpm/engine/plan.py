"""The contract between a chain of steps and the engines that run it.

A step is a function ``step(x, i) -> x``: ``x`` the chain's state [B, ...], ``i`` an int64 device
tensor of shape [1] holding the step's index. The chain runs i = start, start - 1, ..., counting
down:

    begin(x);   for i in (start, start-1, ..., start-steps+1):  x = step(x, i)

Everything a step needs it reads through ``i`` from tables on the device, so the same step serves
the eager loop, a CUDA graph (one capture replayed for every i) and a recorded CPU program. An
engine is a function ``prepare(step, plan) -> Runner`` which does all allocation, warm-up,
compilation and capture; the runner then only copies in, replays and copies out. Engines know
nothing of diffusion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

# step(x, i) may write x in place and return it, or return another tensor of the same shape, dtype
# and device. What else it reads and writes lies in tensors whose addresses stay. It may have a
# method ``begin(x)``, called with the state before the first step of every run: there it puts back
# whatever it carries from one step to the next (the first network input, a flag of its own).
# Engines call the step more often than the chain has steps (to warm up), each time after ``begin``,
# and some once without it on tensors that have no memory (torch's FakeTensor), to record it.
Step = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Plan:
    """What a runner is prepared for.

    shape:     the state's shape, [B, ...]. B may be 0.
    num_steps: rows of the step's tables, at least 1; indices are 0 to num_steps - 1.
    device:    where the state lives.
    dtype:     the state's dtype.
    fused:     the step is made of large kernels, and a compiler finds next to nothing to join.

    Raises ValueError for a chain of no steps.
    """

    shape: tuple[int, ...]
    num_steps: int
    device: torch.device
    dtype: torch.dtype = torch.float32
    fused: bool = False

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"a chain has at least one step, got num_steps={self.num_steps}")

    def indices(self, start: int | None = None, steps: int | None = None) -> range:
        """The step indices in the order in which they run.

        start: the first, num_steps - 1 if None. steps: how many; None means down to 0 and with it.

        Raises ValueError for a start that the tables have no row for, or a chain that would count
        below zero.
        """
        start = self.num_steps - 1 if start is None else start
        if not 0 <= start < self.num_steps:
            raise ValueError(f"a chain starts at an index 0 to {self.num_steps - 1}, got {start}")
        steps = start + 1 if steps is None else steps
        if not 0 <= steps <= start + 1:
            raise ValueError(f"from index {start} a chain has 0 to {start + 1} steps, got {steps}")
        return range(start, start - steps, -1)

    def check(self, x: Tensor) -> None:
        """Raise ValueError unless x is what this plan was made for."""
        if not self._fits(x):
            raise ValueError(f"this runner was prepared for {self._state}; got {_described(x)}")

    def check_step(self, returned: Tensor) -> None:
        """Raise ValueError unless a step returned what the next one takes."""
        if not self._fits(returned):
            raise ValueError(
                f"a step returns a state like the one it gets, {self._state}; "
                f"this one returned {_described(returned)}"
            )

    def _fits(self, x: Tensor) -> bool:
        return (tuple(x.shape), x.dtype, x.device) == (self.shape, self.dtype, self.device)

    @property
    def _state(self) -> str:
        return f"shape {list(self.shape)}, {self.dtype} on {self.device}"


def _described(x: Tensor) -> str:
    return f"shape {list(x.shape)}, {x.dtype} on {x.device}"


class CannotPrepare(ValueError):
    """An engine cannot run this step: the message says why, and which engines can."""


class Runner(Protocol):
    """A prepared chain. It owns one state and one index, so it runs one chain at a time."""

    @property
    def plan(self) -> Plan: ...

    def __call__(self, x: Tensor, start: int | None = None, steps: int | None = None) -> Tensor:
        """Run the steps ``plan.indices(start, steps)`` from the state x, which is left unchanged,
        and return a fresh tensor.

        Raises ValueError when x is not of the plan's shape, dtype and device, or the plan has no
        such steps.
        """
        ...

    def iterate(
        self,
        x: Tensor,
        start: int | None = None,
        steps: int | None = None,
        stops: Callable[[int], bool] = lambda i: True,
    ) -> Iterator[tuple[int, Tensor]]:
        """The same chain with stops: yields (index of the step just taken, the state after it)
        after the steps i for which stops(i), by default all, and after the last.

        The chain begins at the call: x is copied, errors are raised. The state belongs to the
        runner and is valid until the next step. Whatever must happen on the host between steps
        (progress, progressive samples, a caller's own noise) happens in the loop over this.
        Beginning another run of the same runner ends this one: its next step raises RuntimeError.
        """
        ...

    def reread(self) -> None:
        """Read the weights anew before the next run, even if they seem unchanged: torch does not
        count what is written through ``parameter.data``."""
        ...


Prepare = Callable[[Step, Plan], Runner]
