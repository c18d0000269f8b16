"""The plain engine: one Python call per step, on any device. Every other engine is checked against
it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastddpm.engine.plan import Plan, Step


class EagerRunner:
    """Calls the step as it is; see :class:`fastddpm.engine.Runner`."""

    def __init__(self, step: Step, plan: Plan) -> None:
        self.plan = plan
        self._step = step
        self._index = torch.empty(1, dtype=torch.int64, device=plan.device)

    def __call__(self, x: Tensor) -> Tensor:
        # A chain of no steps must still hand back a tensor that is not the caller's.
        state = x.clone()
        for _, stepped in self.iterate(x):
            state = stepped
        return state

    def iterate(self, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        self.plan.check(x)
        # The index counts down on the device, so that no number crosses from the host inside the
        # loop.
        index = self._index.fill_(self.plan.start)
        for i in self.plan.indices:
            x = self._step(x, index)
            index.sub_(1)
            yield i, x


def prepare(step: Step, plan: Plan) -> EagerRunner:
    """Prepare ``step`` for ``plan``: the eager engine only needs a place for the index."""
    return EagerRunner(step, plan)
