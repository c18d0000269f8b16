"""Engines: the contract of Plan and Runner, and the choice between engines."""

from __future__ import annotations

import pytest
import torch
from engine_steps import NUM_STEPS, Carrying, affine
from torch import Tensor

from fastddpm.engine import ENGINES, CannotPrepare, Plan, Runner, Selection, Step, eager, select
from fastddpm.engine.selection import Engine

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")


def run_by_hand(x: Tensor, indices: list[int]) -> Tensor:
    for i in indices:
        x = x * 3 + i
    return x


@pytest.mark.parametrize(
    ("start", "steps", "indices"),
    [
        (None, None, [4, 3, 2, 1, 0]),
        (4, 2, [4, 3]),
        (2, None, [2, 1, 0]),
        (0, None, [0]),
        (4, 0, []),
        (None, 5, [4, 3, 2, 1, 0]),
    ],
)
def test_the_chain_counts_down(start: int | None, steps: int | None, indices: list[int]) -> None:
    x = torch.tensor([[1.0], [2.0]])
    plan = Plan((2, 1), 5, CPU)
    assert list(plan.indices(start, steps)) == indices
    assert torch.equal(eager.prepare(affine, plan)(x, start, steps), run_by_hand(x, indices))


def test_one_runner_serves_every_start_and_leaves_its_input_alone() -> None:
    x = torch.ones(2, 3)
    runner = eager.prepare(affine, Plan((2, 3), 4, CPU))
    for start in (3, 1, 3, 0, 2):
        assert torch.equal(runner(x, start), run_by_hand(x, list(range(start, -1, -1))))
    assert torch.equal(x, torch.ones(2, 3))


def test_a_chain_of_no_steps_returns_a_tensor_of_its_own() -> None:
    x = torch.ones(2, 3)
    runner = eager.prepare(affine, Plan((2, 3), 4, CPU))
    out = runner(x, steps=0)
    out.zero_()
    assert torch.equal(runner(x, steps=0), torch.ones(2, 3))
    assert torch.equal(x, torch.ones(2, 3))


def test_iterate_yields_every_step() -> None:
    x = torch.ones(1)
    runner = eager.prepare(affine, Plan((1,), 4, CPU))
    seen = [(i, state.clone()) for i, state in runner.iterate(x)]
    assert [i for i, _ in seen] == [3, 2, 1, 0]
    for count, (_, state) in enumerate(seen, 1):
        assert torch.equal(state, run_by_hand(x, [3, 2, 1, 0][:count]))


def test_iterate_begins_and_checks_at_the_call() -> None:
    runner = eager.prepare(affine, Plan((1,), 4, CPU))
    x = torch.ones(1)
    states = runner.iterate(x)
    x.fill_(torch.nan)
    assert torch.equal(next(states)[1], torch.tensor([6.0]))
    with pytest.raises(ValueError, match="prepared for"):
        runner.iterate(torch.ones(2))
    assert torch.equal(next(states)[1], torch.tensor([20.0]))


def test_a_second_chain_ends_the_first() -> None:
    runner = eager.prepare(affine, Plan((1,), 4, CPU))
    first = runner.iterate(torch.ones(1))
    next(first)
    runner(torch.zeros(1))
    with pytest.raises(RuntimeError, match="another chain"):
        next(first)


def test_state_and_index_stay_where_they_are() -> None:
    """As a captured graph and a compiled step need."""
    given = []

    def step(x: Tensor, i: Tensor) -> Tensor:
        given.append((i.dtype, tuple(i.shape), i.data_ptr(), x.data_ptr()))
        return x + 1

    eager.prepare(step, Plan((1,), 6, CPU))(torch.ones(1))
    assert set(given) == {(torch.int64, (1,), *given[0][2:])}
    assert len(given) == 6


def test_a_runner_prepared_in_inference_mode_runs_outside_and_the_other_way_round() -> None:
    x, plan = torch.ones(2), Plan((2,), NUM_STEPS, CPU)
    with torch.inference_mode():
        inside = eager.prepare(affine, plan)
        expected = inside(x)
    outside = eager.prepare(affine, plan)
    assert torch.equal(inside(x), expected)
    with torch.inference_mode():
        assert torch.equal(outside(x), expected)
    assert torch.equal(outside(x), expected)


def test_begin_is_called_with_the_state_before_the_first_step() -> None:
    plan = Plan((2,), NUM_STEPS, CPU)
    runner = eager.prepare(Carrying((2,)), plan)
    first = runner(torch.ones(2))
    assert not first.isnan().any()
    assert torch.equal(runner(torch.ones(2)), first)


@pytest.mark.parametrize(
    "x", [torch.ones(3, 2), torch.ones(2, 3, dtype=torch.float64), torch.ones(2, 3, device="meta")]
)
def test_a_state_outside_of_the_plan_is_refused(x: Tensor) -> None:
    runner = eager.prepare(affine, Plan((2, 3), 3, CPU))
    with pytest.raises(ValueError, match=r"prepared for shape \[2, 3\]"):
        runner(x)


@pytest.mark.parametrize("step", [lambda x, i: x[0], lambda x, i: x.double()])
def test_a_step_that_returns_another_kind_of_state_is_refused(step: Step) -> None:
    runner = eager.prepare(step, Plan((2, 3), 3, CPU))
    with pytest.raises(ValueError, match=r"a step returns a state like the one it gets"):
        runner(torch.ones(2, 3))


@pytest.mark.parametrize(("start", "steps"), [(-1, None), (4, None), (3, 5), (3, -1), (None, 5)])
def test_a_chain_below_zero_or_beyond_the_tables_is_refused(
    start: int | None, steps: int | None
) -> None:
    runner = eager.prepare(affine, Plan((1,), 4, CPU))
    with pytest.raises(ValueError, match="got"):
        runner(torch.ones(1), start, steps)


def test_a_plan_of_no_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="num_steps=0"):
        Plan((1,), 0, CPU)


@pytest.mark.parametrize(
    ("name", "device", "engine", "backend"),
    [
        ("auto", CPU, "cpu", "auto"),
        ("cpu", CPU, "cpu", "auto"),
        ("reference", CPU, "reference", "reference"),
        ("compile", CPU, "compile", "auto"),
        ("auto", CUDA, "cuda_graph", "auto"),
        ("reference", CUDA, "reference", "reference"),
        ("compile", CUDA, "compile", "auto"),
        ("cuda_graph", CUDA, "cuda_graph", "auto"),
    ],
)
def test_the_engine_of_a_name(name: str, device: torch.device, engine: str, backend: str) -> None:
    selection = select(name, device)
    assert (selection.name, selection.backend) == (engine, backend)
    assert selection.captures == (engine in ("compile", "cuda_graph"))


@pytest.mark.parametrize(
    ("name", "device", "reason"),
    [
        ("cuda_graph", "cpu", "needs a CUDA device, the chain is on cpu"),
        ("cpu", "cuda:0", "runs on the CPU"),
        ("compile", "meta", "runs on CUDA devices and the CPU"),
        ("fast", "cpu", "engine is one of"),
    ],
)
def test_an_engine_that_cannot_run_is_refused_with_the_reason(
    name: str, device: str, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        select(name, torch.device(device))


def test_a_selection_tells_why_the_others_do_not_run() -> None:
    others = select("auto", CPU).others
    assert set(others) == set(ENGINES) - {"auto", "cpu", "reference"}
    assert all(others.values())


def failing(error: Exception, tried: list[str], name: str = "cuda_graph") -> Engine:
    def prepare(step: Step, plan: Plan) -> Runner:
        tried.append(name)
        raise error

    return Engine(name, f"the {name} engine", prepare)


PLAIN = Engine("eager", "the plain loop", eager.prepare)
PLAN = Plan((1,), 2, CPU)


def test_where_an_engine_cannot_prepare_a_step_the_next_one_runs() -> None:
    tried: list[str] = []
    first = failing(CannotPrepare("it draws"), tried)
    second = failing(CannotPrepare("it branches"), tried, "compile")
    selection = Selection((first, second, PLAIN), "auto", {"cpu": "not here"})
    for _ in range(2):  # What failed is not tried again.
        assert selection.prepare(affine, PLAN)(torch.ones(1)) == 12
    assert tried == ["cuda_graph", "compile"]
    assert (selection.name, selection.captures) == ("eager", False)
    assert selection.others == {
        "cpu": "not here",
        "cuda_graph": "it draws",
        "compile": "it branches",
    }
    assert selection.notes == [
        "the cuda_graph engine could not prepare the chain: it draws",
        "the compile engine could not prepare the chain: it branches",
    ]


def test_a_second_way_to_the_same_engine_is_no_other_engine() -> None:
    way = Engine("cuda_graph", "a graph of the step as it is", eager.prepare)
    selection = Selection((failing(CannotPrepare("it breaks"), []), way), "auto", {})
    selection.prepare(affine, PLAN)
    assert (selection.name, selection.others, len(selection.notes)) == ("cuda_graph", {}, 1)


def test_the_last_engine_raises() -> None:
    selection = Selection((failing(CannotPrepare("it draws"), []),), "auto", {})
    with pytest.raises(ValueError, match="it draws"):
        selection.prepare(affine, PLAN)


def test_a_mistake_of_the_step_does_not_cost_the_engine() -> None:
    selection = Selection((failing(ValueError("labels are missing"), []), PLAIN), "auto", {})
    with pytest.raises(ValueError, match="labels are missing"):
        selection.prepare(affine, PLAN)
    assert selection.name == "cuda_graph"
