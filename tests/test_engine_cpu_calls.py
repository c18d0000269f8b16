"""Functions of torch in a native program: called between two instructions, once a step."""

from __future__ import annotations

import threading

import pytest
import torch
from cpu_program.steps import needs_library, plan_of
from torch import Tensor

from fastddpm import ops
from fastddpm.engine import CannotPrepare, CpuOptions, Plan, eager
from fastddpm.engine.cpu_program import CpuPrograms
from fastddpm.ops import host_call

pytestmark = needs_library

STEPS = 5


class Scaled:
    """x <- shift(x) x, where a function makes the shift in a buffer and then changes the state."""

    def __init__(self) -> None:
        self.buffer = torch.zeros(2, 3, 4, 4)
        self.mask = torch.rand(2, 3, 4, 4) < 0.5
        self.threads: set[int] = set()

    def _square(self, x: Tensor, buffer: Tensor, mask: Tensor) -> None:
        assert not torch.is_grad_enabled()
        self.threads.add(threading.get_ident())
        buffer.copy_(torch.where(mask, x * x, x))
        x.mul_(0.5)

    def __call__(self, x: Tensor, i: Tensor) -> Tensor:
        ops.host_call_(self._square, x, self.buffer, self.mask)
        return torch.nn.functional.silu(x) + self.buffer


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_function_reads_and_writes_the_state_and_what_the_step_holds(threads: int) -> None:
    x, step = torch.randn(2, 3, 4, 4), Scaled()
    plan = plan_of(x, STEPS)
    expected = eager.prepare(step, plan)(x)
    step.threads.clear()
    runner = CpuPrograms(CpuOptions(threads)).prepare(step, plan)
    for _ in range(2):
        torch.testing.assert_close(runner(x), expected)
    # The caller's own, so that its modes hold.
    assert step.threads == {threading.get_ident()}


def test_what_it_raises_comes_out_once_and_the_runner_goes_on() -> None:
    calls: list[int] = []

    def function(x: Tensor) -> None:
        calls.append(len(calls))
        if len(calls) == 2:
            raise KeyboardInterrupt

    def step(x: Tensor, i: Tensor) -> Tensor:
        ops.host_call_(function, x)
        return x

    x = torch.randn(1, 3, 4, 4)
    runner = CpuPrograms().prepare(step, plan_of(x, STEPS))
    assert calls == []  # Recording does not call it.
    with pytest.raises(KeyboardInterrupt):
        runner(x)
    assert calls == [0, 1]
    assert torch.equal(runner(x), x) and len(calls) == 2 + STEPS


def test_what_a_program_makes_has_to_be_held_to_be_given_to_a_function() -> None:
    def step(x: Tensor, i: Tensor) -> Tensor:
        made = torch.nn.functional.silu(x)
        ops.host_call_(lambda tensor: None, made)
        return made

    plan = Plan((1, 3, 4, 4), STEPS, torch.device("cpu"))
    with pytest.raises(CannotPrepare, match="the step's own state, and tensors it holds"):
        CpuPrograms().prepare(step, plan)


def test_opcheck() -> None:
    host_call._functions[7] = lambda a, b: a.add_(b)
    try:
        torch.library.opcheck(host_call.HOST_CALL, ([torch.ones(3), torch.ones(3)], 7))
    finally:
        host_call.recorded_function(7)
