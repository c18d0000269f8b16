"""Engines: the contract of Plan and Runner, and the choice between engines."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastddpm.engine import ENGINES, Plan, eager, select

CPU = torch.device("cpu")


def affine(x: Tensor, i: Tensor) -> Tensor:
    """Order matters: the result tells which indices came in which order."""
    return x * 3 + i


def run_by_hand(x: Tensor, indices: list[int]) -> Tensor:
    for i in indices:
        x = x * 3 + i
    return x


@pytest.mark.parametrize(
    ("start", "steps", "indices"),
    [(4, None, [4, 3, 2, 1, 0]), (4, 2, [4, 3]), (0, None, [0]), (7, 0, [])],
)
def test_the_chain_counts_down(start: int, steps: int | None, indices: list[int]) -> None:
    x = torch.tensor([[1.0], [2.0]])
    plan = Plan((2, 1), start, CPU, steps)
    assert list(plan.indices) == indices
    assert torch.equal(eager.prepare(affine, plan)(x), run_by_hand(x, indices))


def test_a_runner_runs_again_from_the_start_and_leaves_its_input_alone() -> None:
    x = torch.ones(2, 3)
    runner = eager.prepare(affine, Plan((2, 3), 3, CPU))
    first = runner(x)
    assert torch.equal(runner(x), first)
    assert torch.equal(x, torch.ones(2, 3))


def test_a_chain_of_no_steps_returns_a_tensor_of_its_own() -> None:
    x = torch.ones(2, 3)
    out = eager.prepare(affine, Plan((2, 3), 3, CPU, steps=0))(x)
    assert torch.equal(out, x)
    assert out.data_ptr() != x.data_ptr()


def test_iterate_yields_every_step() -> None:
    x = torch.ones(1)
    runner = eager.prepare(affine, Plan((1,), 3, CPU))
    seen = [(i, state.clone()) for i, state in runner.iterate(x)]
    assert [i for i, _ in seen] == [3, 2, 1, 0]
    for count, (_, state) in enumerate(seen, 1):
        assert torch.equal(state, run_by_hand(x, [3, 2, 1, 0][:count]))


def test_the_index_is_a_device_tensor_of_one_int64() -> None:
    given = []

    def step(x: Tensor, i: Tensor) -> Tensor:
        given.append((i.dtype, tuple(i.shape), i.data_ptr()))
        return x

    eager.prepare(step, Plan((1,), 5, CPU))(torch.ones(1))
    # One buffer for all steps, as a captured graph needs.
    assert set(given) == {(torch.int64, (1,), given[0][2])}
    assert len(given) == 6


@pytest.mark.parametrize(
    "x", [torch.ones(3, 2), torch.ones(2, 3, dtype=torch.float64), torch.ones(2, 3, device="meta")]
)
def test_a_state_outside_of_the_plan_is_refused(x: Tensor) -> None:
    runner = eager.prepare(affine, Plan((2, 3), 3, CPU))
    with pytest.raises(ValueError, match=r"prepared for shape \[2, 3\]"):
        runner(x)


@pytest.mark.parametrize(("start", "steps"), [(-1, None), (3, 5), (3, -1)])
def test_a_plan_below_zero_is_refused(start: int, steps: int | None) -> None:
    with pytest.raises(ValueError, match="got"):
        Plan((1,), start, CPU, steps)


def test_auto_and_reference_are_the_same_loop_with_other_ops() -> None:
    assert select("auto", CPU).prepare is select("reference", CPU).prepare
    assert (select("auto", CPU).backend, select("reference", CPU).backend) == ("auto", "reference")


@pytest.mark.parametrize(
    ("name", "device", "reason"),
    [
        ("compile", "cpu", "not built yet"),
        ("cuda_graph", "cpu", "needs a CUDA device"),
        ("cpu", "cuda:0", "runs on the CPU"),
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
    assert set(others) == set(ENGINES) - {"auto", "reference"}
    assert all(others.values())
