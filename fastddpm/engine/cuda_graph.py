"""The CUDA-graph engine: one step is captured and replayed for every step of the chain.

    capture:  state, index = step(state, index), index - 1        once, after three warm-up steps
    run:      copy x in;  index = start;  begin(state);  replay × steps;  copy the state out

The index is device memory that the graph itself counts down, so the same graph serves every step
and nothing crosses from the host. What is captured is the compiled step (compiled.py), or the step
as it is where its kernels are fused already: on an H100 compiling Ho's U-Net took one to four
minutes and changed its time by less than the noise, at every batch size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from fastddpm.engine import compiled
from fastddpm.engine.graph_pool import GraphPool
from fastddpm.engine.plan import CannotPrepare, Plan, Step
from fastddpm.engine.runner import ChainRunner
from fastddpm.engine.watch import cannot_capture, no_waiting, watched

# The first lets cuDNN choose, cuBLAS allocate and Triton compile; the last is watched.
WARM_UPS = 3


class CudaGraphs:
    """The engine. All graphs that one instance captures share a memory pool, so their runners must
    run on one stream, one at a time.

    compile: compile steps that are not fused (plan.fused), or capture every step as it is.
    unroll:  steps in a graph, at least 1. More than 1 saves the gaps between replays where steps
             are short (batch 4 and below); a chain's remaining steps, and those that are iterated
             over, run in a graph of one step.

    Raises ValueError for an unroll below 1.
    """

    def __init__(self, *, compile: bool = True, unroll: int = 1) -> None:
        if unroll < 1:
            raise ValueError(f"a graph holds at least 1 step, got unroll={unroll}")
        self._compile = compile
        self._unroll = unroll
        self._pool: GraphPool | None = None

    def prepare(self, step: Step, plan: Plan) -> CudaGraphRunner:
        """Compile, warm up and capture ``step`` for ``plan``; all plans are for one device.

        Raises CannotPrepare for a step that cannot be compiled or captured. The device is usable
        after that, and so are the graphs captured before. What the step raises by itself goes
        through.
        """
        random_state = torch.random.fork_rng([plan.device], device_type="cuda")
        with torch.cuda.device(plan.device), torch.no_grad(), _timed_convolutions(), random_state:
            compile = self._compile and not plan.fused
            call = compiled.prepare(step, plan).call if compile else step
            pool, self._pool = self._pool or GraphPool(plan.device), None
            runner = CudaGraphRunner(step, plan, call, pool, self._unroll)
            # Not after an error: what a failed capture leaves in a pool is undefined.
            self._pool = pool
        return runner


class CudaGraphRunner(ChainRunner):
    """Replays captured steps; see :class:`fastddpm.engine.Runner`.

    call: what is captured, the step or a compiled form of it.
    """

    def __init__(self, step: Step, plan: Plan, call: Step, pool: GraphPool, unroll: int) -> None:
        super().__init__(step, plan, call)
        self._unroll = unroll
        with pool.side_stream():
            self.warm_up(WARM_UPS, last=watched(plan.device))
        # The longest first: the other's memory fits into what it leaves.
        self._many = self._captured(pool, unroll)
        self._one = self._many if unroll == 1 else self._captured(pool, 1)

    def _captured(self, pool: GraphPool, steps: int) -> torch.cuda.CUDAGraph:
        try:
            # Refused before it reaches the device, a wait leaves the capture whole.
            with pool.capturing() as graph, no_waiting():
                for _ in range(steps):
                    self._step_in_place()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            # Ending a broken capture fails, too: what broke it is the context of that.
            first = error.__context__ or error
            if isinstance(first, CannotPrepare):
                raise first from error
            raise cannot_capture(str(first).partition("\n")[0]) from error
        return graph

    def _advance(self, count: int) -> Tensor:
        many, rest = divmod(count, self._unroll)
        for _ in range(many):
            self._many.replay()
        for _ in range(rest):
            self._one.replay()
        return self._state


@contextmanager
def _timed_convolutions() -> Iterator[None]:
    """cuDNN times its algorithms in the warm-up and keeps the fastest, unless the caller wants
    deterministic ones."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
