"""The emulator itself: it must refuse what CUDA refuses, or the engine's tests prove nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from capture import Device, Graph, emulated, launches


@pytest.fixture
def device() -> Iterator[Device]:
    with emulated() as device:
        yield device


def captured(function: Callable[[], Any], pool: Any = None) -> Graph:
    graph = torch.cuda.CUDAGraph()
    pool = torch.cuda.graph_pool_handle() if pool is None else pool
    with torch.cuda.graph(graph, pool=pool, stream=torch.cuda.Stream()):
        function()
    return graph


def test_a_capture_executes_nothing_and_a_replay_does(device: Device) -> None:
    x, out = torch.ones(3), torch.zeros(3)
    graph = captured(lambda: out.copy_(x.mul_(2) + 1))
    assert torch.equal(x, torch.ones(3))
    assert torch.equal(out, torch.zeros(3))
    graph.replay()
    assert torch.equal(out, torch.full((3,), 3.0))
    graph.replay()
    assert torch.equal(out, torch.full((3,), 5.0))


def test_what_a_capture_makes_is_garbage_until_a_replay(device: Device) -> None:
    made = []
    graph = captured(lambda: made.append(torch.ones(3) + 1))
    assert made[0].isnan().all()
    graph.replay()
    assert torch.equal(made[0], torch.full((3,), 2.0))


def test_memory_of_the_capture_carries_nothing_from_one_replay_to_the_next(device: Device) -> None:
    """Another graph of the pool may have run in between."""
    carried: list[Tensor] = []

    def step() -> None:
        made = torch.empty(2)
        carried.append(made)
        made.add_(1)

    graph = captured(step)
    carried[0].zero_()
    graph.replay()
    assert carried[0].isnan().all()


def test_views_reach_the_memory_that_they_show(device: Device) -> None:
    x = torch.zeros(2, 3)
    graph = captured(lambda: x.t().unsqueeze(0)[:, 1].add_(1))
    graph.replay()
    assert torch.equal(x, torch.tensor([[0.0, 1, 0], [0, 1, 0]]))


X = torch.tensor([1.0, -1.0])


@pytest.mark.parametrize(
    "function",
    [
        lambda: X.sum().item(),
        lambda: float(X[0]),
        lambda: "positive" if X[0] > 0 else "negative",
        lambda: X.tolist(),
        lambda: X.numpy(),
        lambda: X.cpu(),
        lambda: X.nonzero(),
        lambda: X[X > 0],
        lambda: X.masked_select(X > 0),
        lambda: X.unique(),
        lambda: torch.equal(X, X),
        lambda: torch.tensor([1.0]),
        lambda: torch.randn(2),
        lambda: F.dropout(X),
        lambda: X.clone().normal_(),
        lambda: torch.cuda.synchronize(),
        lambda: torch.cuda.current_stream().synchronize(),
    ],
)
def test_what_a_capture_forbids(device: Device, function: Callable[[], Any]) -> None:
    with pytest.raises(RuntimeError, match="previous error during capture") as caught:
        captured(function)
    assert "capturing" in str(caught.value.__context__)


@pytest.mark.parametrize(
    "function",
    [
        lambda: X[torch.zeros(1, dtype=torch.int64)],
        lambda: X.masked_fill(X > 0, 0.0),
        lambda: X.clone().__setitem__(X > 0, X.sum()),
        lambda: torch.where(X > 0, X, 0.0),
        lambda: F.scaled_dot_product_attention(*[torch.ones(1, 1, 2, 2)] * 3),
        lambda: F.dropout(X, training=False),
        lambda: torch.arange(3) + torch.full((3,), 2),
        lambda: X.data_ptr(),
    ],
)
def test_what_a_capture_allows(device: Device, function: Callable[[], Any]) -> None:
    captured(function).replay()


def test_a_synchronizing_call_is_found_before_a_capture(device: Device) -> None:
    torch.cuda.set_sync_debug_mode("error")
    with pytest.raises(RuntimeError, match="synchronizing CUDA operation"):
        X.sum().item()
    torch.cuda.set_sync_debug_mode("default")
    assert X.sum().item() == 0


def test_a_pool_is_refused_after_a_failed_capture(device: Device) -> None:
    pool = torch.cuda.graph_pool_handle()
    with pytest.raises(RuntimeError):
        captured(lambda: X.tolist(), pool)
    with pytest.raises(RuntimeError, match="captures_underway"):
        torch.cuda.empty_cache()
    torch._C._cuda_endAllocateToPool(0, pool)
    torch.cuda.empty_cache()


def test_a_pool_is_refused_after_its_last_graph_has_gone(device: Device) -> None:
    pool = torch.cuda.graph_pool_handle()
    graph = captured(lambda: X + 1, pool)
    captured(lambda: X + 1, pool)
    graph = captured(lambda: X + 1, pool)
    del graph
    with pytest.raises(RuntimeError, match="use_count"):
        captured(lambda: X + 1, pool)


def test_launches(device: Device) -> None:
    x, weight, bias = torch.ones(1, 2, 4, 4), torch.ones(3, 2, 1, 1), torch.ones(3)

    def step() -> None:
        y = F.conv2d(x, weight, bias)
        y = F.conv2d(y, torch.empty(3, 3, 1, 1))
        F.silu(y.permute(0, 2, 3, 1).reshape(16, 3)).sub_(1)

    assert launches(captured(step)) == {
        "aten::convolution": 3,
        "aten::silu": 1,
        "aten::sub_": 1,
    }


def test_torch_is_as_before_after_the_emulation() -> None:
    before = {name: getattr(torch.cuda, name) for name in dir(torch.cuda)}
    compile = torch.compile
    with emulated(), pytest.raises(RuntimeError):
        captured(lambda: X.tolist())
    assert {name: getattr(torch.cuda, name) for name in dir(torch.cuda)} == before
    assert torch.compile is compile
    assert X.tolist() == [1.0, -1.0]
    assert "tolist" not in vars(torch.Tensor)
