"""The plain engine: one Python call per step, on any device. Every other engine is checked against
it."""

from __future__ import annotations

import torch
from torch import Tensor

from fastddpm.engine.plan import Plan, Step
from fastddpm.engine.runner import ChainRunner


class EagerRunner(ChainRunner):
    """Calls the step, or a compiled form of it, once for every step of the chain, without
    gradients; see :class:`fastddpm.engine.Runner`."""

    @torch.no_grad()
    def _advance(self, count: int) -> Tensor:
        for _ in range(count):
            self._step_in_place()
        return self._state


def prepare(step: Step, plan: Plan) -> EagerRunner:
    """Prepare ``step`` for ``plan``: the eager engine only needs a place for state and index."""
    return EagerRunner(step, plan)
