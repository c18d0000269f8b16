"""Steps that a CUDA graph cannot hold are refused with the reason, and nothing is left half done;
under the emulator of tests/capture."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import torch
from capture import Device, emulated
from engine_steps import NUM_STEPS, affine
from torch import Tensor
from torch.nn import functional as F

from fastddpm.engine import CannotPrepare, Plan, Step, eager
from fastddpm.engine.cuda_graph import CudaGraphs

SHAPE = (2, 3)
PLAN = Plan(SHAPE, NUM_STEPS, torch.device("cpu"))
X = torch.tensor([[0.5, -1.0, 2.0], [0.0, 3.0, -0.25]])


@pytest.fixture
def device() -> Iterator[Device]:
    with emulated() as device:
        yield device


KEPT: list[Any] = []


def waiting_in_a_capture(x: Tensor, i: Tensor) -> Tensor:
    if torch.cuda.is_current_stream_capturing():
        x.sum().item()
    return x


def synchronizing_in_a_capture(x: Tensor, i: Tensor) -> Tensor:
    if torch.cuda.is_current_stream_capturing():
        torch.cuda.synchronize()
    return x


def both_in_a_capture(x: Tensor, i: Tensor) -> Tensor:
    if torch.cuda.is_current_stream_capturing():
        with suppress(RuntimeError):
            torch.cuda.synchronize()
        x.sum().item()
    return x


REFUSED: dict[str, tuple[Step, str]] = {
    "item": (lambda x, i: x * i.item(), "waits for the device"),
    "a branch": (lambda x, i: x if x.sum() > 0 else -x, "waits for the device"),
    "a loop": (lambda x, i: x + sum(range(int(i))), "waits for the device"),
    "nonzero": (lambda x, i: x + x.nonzero().sum(), "waits for the device"),
    "a mask": (lambda x, i: x + x[x > 0].sum(), "waits for the device"),
    "tolist": (lambda x, i: x + i.tolist()[0], "waits for the device"),
    "numpy": (lambda x, i: x + i.numpy()[0], "waits for the device"),
    "a host tensor": (lambda x, i: x + torch.tensor([1.0]), "waits for the device"),
    "randn": (lambda x, i: x + torch.randn_like(x), "random generator"),
    "dropout": (lambda x, i: F.dropout(x), "random generator"),
    "kept memory": (lambda x, i: KEPT.append(x.clone()) or x, "keeps 24 more bytes"),
    "item in a capture": (waiting_in_a_capture, "waits for the device"),
    "item in a broken capture": (both_in_a_capture, "waits for the device"),
    "synchronize in a capture": (synchronizing_in_a_capture, "synchronize"),
}


@pytest.mark.parametrize(("step", "why"), REFUSED.values(), ids=REFUSED)
def test_a_step_that_cannot_be_captured_is_refused(device: Device, step: Step, why: str) -> None:
    engine = CudaGraphs(compile=False)
    before = engine.prepare(affine, PLAN)
    settings, random = _settings(device), torch.get_rng_state()
    with pytest.raises(CannotPrepare, match=why) as caught:
        engine.prepare(step, PLAN)
    message = str(caught.value)
    assert message.count("the step cannot be captured in a CUDA graph") == 1
    assert message.endswith("engine='compile' or 'reference' runs it")
    # Nothing is left half done: the device, the graphs before and the engine go on.
    assert _settings(device) == settings
    assert torch.equal(torch.get_rng_state(), random)
    torch.cuda.empty_cache()
    expected = eager.prepare(affine, PLAN)(X)
    assert torch.equal(before(X), expected)
    assert torch.equal(engine.prepare(affine, PLAN)(X), expected)
    # What the failure left in the pool is not built upon.
    assert len(device.pools) == 2


def _settings(device: Device) -> tuple[Any, ...]:
    return (
        device.stream.name,
        device.recording,
        torch.cuda.get_sync_debug_mode(),
        torch.backends.cudnn.benchmark,
        torch.is_grad_enabled(),
    )


def test_the_line_that_waits_is_named(device: Device) -> None:
    def step(x: Tensor, i: Tensor) -> Tensor:
        if torch.cuda.get_sync_debug_mode():
            raise RuntimeError("called a synchronizing CUDA operation")  # As torch's C++ does.
        return x

    line = step.__code__.co_firstlineno + 2
    with pytest.raises(CannotPrepare, match=rf"test_engine_refusals\.py:{line} "):
        CudaGraphs(compile=False).prepare(step, PLAN)


@pytest.mark.parametrize("error", [TypeError, ValueError, torch.OutOfMemoryError, RuntimeError])
@pytest.mark.parametrize("capturing", [False, True])
def test_the_errors_of_a_step_are_its_own(
    device: Device, error: type[Exception], capturing: bool
) -> None:
    def step(x: Tensor, i: Tensor) -> Tensor:
        if torch.cuda.is_current_stream_capturing() is capturing:
            raise error("of the step")
        return x

    engine = CudaGraphs(compile=False)
    # A RuntimeError in a capture is what CUDA raises for a step that cannot be captured.
    expected = CannotPrepare if capturing and error is RuntimeError else error
    with pytest.raises(expected, match="of the step") as caught:
        engine.prepare(step, PLAN)
    assert isinstance(caught.value, CannotPrepare) == (expected is CannotPrepare)
    assert _settings(device) == ("default", None, 0, False, True)
    assert torch.equal(engine.prepare(affine, PLAN)(X), eager.prepare(affine, PLAN)(X))


def test_a_step_returns_what_it_takes(device: Device) -> None:
    with pytest.raises(ValueError, match=r"a step returns a state like .* \[2\]"):
        CudaGraphs(compile=False).prepare(lambda x, i: x.sum(1), PLAN)
