"""The CUDA-graph engine under the emulator of tests/capture: the code runs as on a GPU, on CPU
tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from capture import Device, emulated, launches
from engine_steps import NUM_STEPS, Carrying, Counting, InPlace, affine
from torch import Tensor

from fastddpm.engine import Fingerprint, Plan, RunnerCache, Step, eager
from fastddpm.engine.cuda_graph import WARM_UPS, CudaGraphRunner, CudaGraphs

SHAPE = (2, 3)
PLAN = Plan(SHAPE, NUM_STEPS, torch.device("cpu"))
X = torch.tensor([[0.5, -1.0, 2.0], [0.0, 3.0, -0.25]])
STEPS: dict[str, Callable[[], Step]] = {
    "affine": lambda: affine,
    "in place": InPlace,
    "carrying": lambda: Carrying(SHAPE),
}
every_step = pytest.mark.parametrize("make", STEPS.values(), ids=STEPS)


@pytest.fixture
def device() -> Iterator[Device]:
    with emulated() as device:
        yield device


def captured(step: Step, unroll: int = 1, plan: Plan = PLAN) -> CudaGraphRunner:
    return CudaGraphs(compile=False, unroll=unroll).prepare(step, plan)


@every_step
@pytest.mark.parametrize("unroll", [1, 3, 4])
@pytest.mark.parametrize(
    ("start", "steps"), [(None, None), (None, 0), (None, 7), (5, None), (5, 2), (0, None)]
)
def test_a_graph_runs_the_chain_of_the_plain_loop(
    device: Device, make: Callable[[], Step], unroll: int, start: int | None, steps: int | None
) -> None:
    expected = eager.prepare(make(), PLAN)(X, start, steps)
    runner = captured(make(), unroll)
    given = X.clone()
    for _ in range(2):
        result = runner(given, start, steps)
        assert torch.equal(result, expected)
        result.fill_(torch.nan)  # It is the caller's own.
    assert torch.equal(given, X)


@every_step
@pytest.mark.parametrize("unroll", [1, 4])
def test_iterating_gives_every_state(device: Device, make: Callable[[], Step], unroll: int) -> None:
    """With work on the host in between."""
    plain = [(i, x.tolist()) for i, x in eager.prepare(make(), PLAN).iterate(X, 6)]
    assert [(i, x.tolist()) for i, x in captured(make(), unroll).iterate(X, 6)] == plain
    assert [i for i, _ in plain] == [6, 5, 4, 3, 2, 1, 0]


def test_what_is_written_between_the_steps_is_seen(device: Device) -> None:
    noise = torch.zeros(SHAPE)
    runner = captured(lambda x, i: x + noise)
    total = X.clone()
    states = runner.iterate(X)
    for k in range(NUM_STEPS):
        noise.fill_(k)
        total += k
        assert torch.equal(next(states)[1], total)


def test_a_step_that_bakes_its_index_in_shows(device: Device) -> None:
    """The emulator has teeth: the same comparison as above fails."""
    assert not torch.equal(captured(Counting())(X), eager.prepare(Counting(), PLAN)(X))


def test_a_second_chain_ends_the_first(device: Device) -> None:
    runner = captured(affine)
    first = runner.iterate(X)
    next(first)
    assert torch.equal(runner(X), eager.prepare(affine, PLAN)(X))
    with pytest.raises(RuntimeError, match="another chain"):
        next(first)


def test_the_order_of_a_capture(device: Device) -> None:
    step = Carrying(SHAPE)

    def noted(x: Tensor, i: Tensor) -> Tensor:
        device.note(f"step on {device.stream.name}")
        return step(x, i)

    def begin(x: Tensor) -> None:
        device.note(f"begin on {device.stream.name}")
        step.begin(x)

    noted.begin = begin  # type: ignore[attr-defined]
    engine = CudaGraphs(compile=False)
    engine.prepare(affine, PLAN)  # Makes the pool and its anchor.
    device.events.clear()
    runner = engine.prepare(noted, PLAN)
    assert device.events == [
        "side 1 waits for default",
        "begin on side 1",
        *["step on side 1"] * WARM_UPS,
        "begin on side 1",
        "default waits for side 1",
        "synchronize",
        "capture on side 1, pool 1, thread_local",
        "step on side 1",
        "capture ends",
    ]
    assert WARM_UPS >= 3
    device.events.clear()
    runner(X)
    assert device.events == ["begin on default", *["replay"] * NUM_STEPS]


def test_between_the_replays_nothing_runs_and_nothing_is_allocated(device: Device) -> None:
    runner = captured(InPlace(), unroll=4)
    device.events.clear()
    with device.noting_ops():
        runner(X)
    assert device.events == ["aten::copy_", "aten::fill_", *["replay"] * 4, "aten::clone"]
    device.events.clear()
    with device.noting_ops():
        for _ in runner.iterate(X):
            pass
    assert device.events == ["aten::copy_", "aten::fill_", *["replay"] * NUM_STEPS]


def test_the_index_is_counted_down_by_a_kernel_of_its_own(device: Device) -> None:
    runner = captured(InPlace())
    assert launches(device.graphs[-1]) == {
        "aten::mul_": 1,
        "aten::index_select": 1,
        "aten::add_": 1,
        "aten::sub_": 1,
    }
    assert runner._index.item() == NUM_STEPS - 1


def test_cudnn_may_time_its_kernels_unless_they_must_be_deterministic(device: Device) -> None:
    seen = []

    def step(x: Tensor, i: Tensor) -> Tensor:
        seen.append(torch.backends.cudnn.benchmark)
        return x

    captured(step)
    assert set(seen) == {True}
    seen.clear()
    torch.use_deterministic_algorithms(True)
    captured(step)
    torch.use_deterministic_algorithms(False)
    assert set(seen) == {False}


def test_no_gradients_are_recorded(device: Device) -> None:
    weight = torch.ones(3, requires_grad=True)
    runner = captured(lambda x, i: x * weight)
    assert not runner(X).requires_grad
    assert not eager.prepare(lambda x, i: x * weight, PLAN)(X).requires_grad


def test_graphs_share_one_pool_and_an_evicted_one_leaves_it(device: Device) -> None:
    engine = CudaGraphs(compile=False)

    def make(batch: int) -> CudaGraphRunner:
        return engine.prepare(affine, Plan((batch, 3), NUM_STEPS, PLAN.device))

    cache: RunnerCache[CudaGraphRunner] = RunnerCache(2)
    for batch in (4, 2, 1):
        with cache.borrow(batch, partial(make, batch)):
            pass
    assert [batch in cache for batch in (4, 2, 1)] == [False, True, True]
    (pool,) = device.pools.values()
    assert pool.graphs == 2 + 1  # Those kept, and the pool's own.
    cache.clear()
    assert pool.graphs == 1
    with cache.borrow(4, lambda: make(4)) as runner:
        assert torch.equal(runner(X.repeat(2, 1)), eager.prepare(affine, PLAN)(X).repeat(2, 1))


def test_a_tail_runs_in_a_larger_graph(device: Device) -> None:
    size = 4
    runner = captured(InPlace(), plan=Plan((size, 3), NUM_STEPS, PLAN.device))
    padded = torch.cat([X, torch.full((size - 2, 3), 1e30)])
    assert torch.equal(runner(padded)[:2], eager.prepare(InPlace(), PLAN)(X))


def test_a_graph_sees_weights_written_in_place_but_not_replaced_ones(device: Device) -> None:
    model = torch.nn.Linear(3, 3)
    step: Step = lambda x, i: model(x)  # noqa: E731
    runner, weights = captured(step), Fingerprint.of(step)
    assert weights.changed() is None
    with torch.no_grad():
        model.weight.mul_(0.5)
    assert (weights.changed(), weights.moved()) == ("model.weight", None)
    assert torch.equal(runner(X), eager.prepare(step, PLAN)(X))

    state = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    assert weights.moved() == "model.weight"
    assert not torch.equal(runner(X), eager.prepare(step, PLAN)(X))
    assert torch.equal(captured(step)(X), eager.prepare(step, PLAN)(X))


def test_a_compiled_step_is_captured_as_one_call() -> None:
    step = Carrying(SHAPE)
    with emulated() as device:
        runner = CudaGraphs(unroll=3).prepare(step, PLAN)
        assert launches(device.graphs[-1]) == {"compiled step": 1, "aten::sub_": 1}
        assert torch.equal(runner(X), eager.prepare(Carrying(SHAPE), PLAN)(X))


def test_a_fused_step_is_captured_as_it_is() -> None:
    with emulated() as device:
        runner = CudaGraphs().prepare(Carrying(SHAPE), dataclasses.replace(PLAN, fused=True))
        assert "compiled step" not in launches(device.graphs[-1])
        assert torch.equal(runner(X), eager.prepare(Carrying(SHAPE), PLAN)(X))


def test_a_step_compiled_by_inductor_is_captured() -> None:
    step, functional = Carrying(SHAPE), InPlace()
    with emulated(torch.compile):
        engine = CudaGraphs()
        runner = engine.prepare(step, PLAN)
        other = engine.prepare(lambda x, i: functional(x.clone(), i), PLAN)
        torch.testing.assert_close(runner(X, 7), eager.prepare(Carrying(SHAPE), PLAN)(X, 7))
        torch.testing.assert_close(other(X), eager.prepare(InPlace(), PLAN)(X))


def test_a_graph_holds_at_least_one_step() -> None:
    with pytest.raises(ValueError, match="unroll=0"):
        CudaGraphs(unroll=0)
