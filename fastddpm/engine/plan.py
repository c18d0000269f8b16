"""The contract between a chain of steps and the engines that run it.

A step is a function ``step(x, i) -> x``: ``x`` the chain's state [B, ...], ``i`` an int64 device
tensor of shape [1] holding the step's index. The chain runs i = start, start - 1, ..., counting
down:

    for i in (start, start-1, ..., start-steps+1):  x = step(x, i)

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

Step = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Plan:
    """What a runner is prepared for.

    shape:  the state's shape, [B, ...]. B may be 0.
    start:  index of the first step, >= 0.
    device: where the state lives.
    steps:  how many steps to take, counting down; None means down to and including 0.
    dtype:  the state's dtype.

    Raises ValueError for a chain that would count below zero.
    """

    shape: tuple[int, ...]
    start: int
    device: torch.device
    steps: int | None = None
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if self.start < 0:
            raise ValueError(f"a chain starts at an index >= 0, got start={self.start}")
        if self.steps is not None and not 0 <= self.steps <= self.start + 1:
            raise ValueError(
                f"from index {self.start} a chain has 0 to {self.start + 1} steps, got {self.steps}"
            )

    @property
    def indices(self) -> range:
        """The step indices in the order in which they run."""
        steps = self.start + 1 if self.steps is None else self.steps
        return range(self.start, self.start - steps, -1)

    def check(self, x: Tensor) -> None:
        """Raise ValueError unless x is what this plan was made for."""
        got = (tuple(x.shape), x.dtype, x.device)
        wanted = (self.shape, self.dtype, self.device)
        if got != wanted:
            raise ValueError(
                f"this runner was prepared for shape {list(wanted[0])}, {wanted[1]} "
                f"on {wanted[2]}; got shape {list(got[0])}, {got[1]} on {got[2]}"
            )


class Runner(Protocol):
    """A prepared chain."""

    @property
    def plan(self) -> Plan: ...

    def __call__(self, x: Tensor) -> Tensor:
        """Run every step from the state x (left unchanged) and return a fresh tensor.

        Raises ValueError when x is not of the plan's shape, dtype and device.
        """
        ...

    def iterate(self, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        """The same chain one step at a time: yields (index of the step just taken, the state after
        it).

        The state belongs to the runner and is valid until the next step. Whatever must happen on
        the host between steps (progress, progressive samples, a caller's own noise) happens in the
        loop over this.
        """
        ...


Prepare = Callable[[Step, Plan], Runner]
