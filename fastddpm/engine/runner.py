"""What all runners share: a state and an index of their own, and the loop over the steps.

    copy x in;  index = start;  begin(state);   each step: state = step(state, index);  index -= 1

State and index stay where they are, and the index counts down on the device, so no number crosses
from the host inside the loop.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from fastddpm.engine.plan import Plan, Step


class ChainRunner(ABC):
    """A ``fastddpm.engine.Runner`` but for ``_advance``, which takes the steps.

    call: what is called, a compiled form of the step; None: the step itself.
    """

    def __init__(self, step: Step, plan: Plan, call: Step | None = None) -> None:
        self.plan = plan
        self.call = call or step
        self._begin = getattr(step, "begin", None)
        # Tensors made in a caller's inference mode could not be written outside of it.
        with torch.inference_mode(False):
            self._state = torch.zeros(plan.shape, dtype=plan.dtype, device=plan.device)
            self._index = torch.zeros(1, dtype=torch.int64, device=plan.device)
        self._runs = 0
        self._owner = threading.RLock()

    def __call__(self, x: Tensor, start: int | None = None, steps: int | None = None) -> Tensor:
        with self._alone():
            count = len(self._start(x, start, steps))
            return self._advance(count).clone()

    def iterate(
        self,
        x: Tensor,
        start: int | None = None,
        steps: int | None = None,
        stops: Callable[[int], bool] = lambda i: True,
    ) -> Iterator[tuple[int, Tensor]]:
        with self._alone():
            return self._follow(self._start(x, start, steps), self._runs, stops)

    def reread(self) -> None:  # noqa: B027 (most have nothing to do)
        """What it runs reads the weights where they lie."""

    @torch.no_grad()
    def warm_up(self, steps: int, last: AbstractContextManager[None] | None = None) -> None:
        """Take so many steps from zeros, the last one inside ``last``, and forget them."""
        top = self.plan.num_steps - 1
        for k in range(steps):
            if k % self.plan.num_steps == 0:
                self._reset(None, top)
            with (last if k == steps - 1 else None) or nullcontext():
                self._step_in_place()
        self._reset(None, top)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """RuntimeError while another thread is inside: state and index serve one chain."""
        if not self._owner.acquire(blocking=False):
            raise RuntimeError(
                "this runner is taking steps in another thread: prepare a runner for each"
            )
        try:
            yield
        finally:
            self._owner.release()

    @abstractmethod
    def _advance(self, count: int) -> Tensor:
        """Take the next ``count`` steps and return the state after them."""

    def _step_in_place(self) -> None:
        returned = self.call(self._state, self._index)
        if returned is not self._state:
            self.plan.check_step(returned)
            self._state.copy_(returned)
        # A kernel of its own: inside the step, programs that start late would read it counted down.
        self._index.sub_(1)

    def _start(self, x: Tensor, start: int | None, steps: int | None) -> range:
        indices = self.plan.indices(start, steps)
        self.plan.check(x)
        self._runs += 1
        self._reset(x, indices.start)
        return indices

    @torch.no_grad()
    def _reset(self, x: Tensor | None, index: int) -> None:
        """Put the state x (None: zeros) and the index in place."""
        if x is None:
            self._state.zero_()
        else:
            self._state.copy_(x)
        self._index.fill_(index)
        if self._begin is not None:
            self._begin(self._state)

    def _follow(
        self, indices: range, run: int, stops: Callable[[int], bool]
    ) -> Iterator[tuple[int, Tensor]]:
        taken = 0
        for count, i in enumerate(indices, 1):
            if not (count == len(indices) or stops(i)):
                continue
            with self._alone():
                if run != self._runs:
                    raise RuntimeError(
                        "this runner has begun another chain since: iterate over one at a time, or "
                        "prepare a runner for each"
                    )
                state, taken = self._advance(count - taken), count
            yield i, state
