"""Fingerprints of a model's weights: what has changed, and whether it lies elsewhere now."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fastddpm.engine import Fingerprint


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


@torch.no_grad()
def written(m: nn.Sequential) -> None:
    m[0].bias.mul_(2)


def optimized(m: nn.Sequential) -> None:
    m(torch.randn(4, 2)).sum().backward()
    torch.optim.SGD(m.parameters(), lr=0.1).step()


def loaded(m: nn.Sequential) -> None:
    m.load_state_dict(model().state_dict())


def assigned(m: nn.Sequential) -> None:
    m.load_state_dict(model().state_dict(), assign=True)


def replaced(m: nn.Sequential) -> None:
    m[0].weight.data = m[0].weight.data.clone()


def extended(m: nn.Sequential) -> None:
    m[0].register_buffer("more", torch.zeros(1))


def shortened(m: nn.Sequential) -> None:
    m[0].bias = None


def swapped(m: nn.Sequential) -> None:
    weight, bias = m[1].weight, m[1].bias
    weight.data, bias.data = bias.data, weight.data


def part_replaced(m: nn.Sequential) -> None:
    m[0] = nn.Linear(2, 3)


def part_of_the_same(m: nn.Sequential) -> None:
    other = nn.Linear(2, 3)
    other.weight, other.bias = m[0].weight, m[0].bias
    m[0] = other


def other_strides(m: nn.Sequential) -> None:
    m[0].weight.data = m[0].weight.data.as_strided((3, 2), (1, 3))


def buffer_written(m: nn.Sequential) -> None:
    m[1].running_mean.add_(1)


@pytest.mark.parametrize(
    ("change", "changed", "moved"),
    [
        (lambda m: None, None, None),
        # torch writes the running mean without counting; the batches are counted beside it.
        (lambda m: m(torch.ones(4, 2)), "1.num_batches_tracked", None),
        (lambda m: m.eval()(torch.ones(4, 2)), None, None),
        (written, "0.bias", None),
        (optimized, "0.weight", None),
        (loaded, "0.weight", None),
        (buffer_written, "1.running_mean", None),
        (assigned, "0.weight", "0.weight"),
        (replaced, "0.weight", "0.weight"),
        (lambda m: m.double(), "0.weight", "0.weight"),
        (lambda m: m.to("meta"), "0.weight", "0.weight"),
        (swapped, "1.weight", "1.weight"),
        (part_replaced, "0.weight", "0.weight"),
        (part_of_the_same, None, None),
        (other_strides, "0.weight", "0.weight"),
        (extended, "0.more", "0.more"),
        (shortened, "0.bias", "0.bias"),
    ],
)
def test_changes(
    change: Callable[[nn.Sequential], Any], changed: str | None, moved: str | None
) -> None:
    m = model()
    fingerprint = Fingerprint.of(m)
    change(m)
    assert (fingerprint.changed(), fingerprint.moved()) == (changed, moved)
    again = Fingerprint.of(m)
    assert (again.changed(), again.moved()) == (None, None)


@torch.no_grad()
def test_writes_after_a_part_was_replaced_by_one_of_the_same_weights() -> None:
    m = model()
    fingerprint = Fingerprint.of(m)
    part_of_the_same(m)
    m[0].bias.add_(1)
    assert fingerprint.moved() is None and fingerprint.changed() == "0.bias"
    fingerprint = Fingerprint.of(m)
    part_of_the_same(m)
    assert fingerprint.changed() is None
    m[0].bias.add_(1)
    assert fingerprint.changed() == "0.bias"


def test_an_address_cannot_come_back_with_other_weights() -> None:
    """The allocator likes to give the same memory again."""
    m = nn.Linear(64, 64)
    fingerprint = Fingerprint.of(m)
    for _ in range(20):
        m.weight = None
        m.weight = nn.Parameter(torch.zeros(64, 64))
        assert fingerprint.moved() == "weight"


def test_weights_made_in_inference_mode() -> None:
    with torch.inference_mode():
        m = nn.Linear(2, 2)
    fingerprint = Fingerprint.of(m)
    assert fingerprint.changed() is None
    m.weight = nn.Parameter(torch.zeros(2, 2))
    assert fingerprint.moved() == "weight"


NET = nn.Linear(2, 2)


def calls_a_global(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    y: torch.Tensor = NET(x)
    return y


class Wrapper:
    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.scale = torch.ones(1)

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> Any:
        return self.net(x) * self.scale

    def method(self, x: torch.Tensor, t: torch.Tensor) -> Any:
        return self(x, t)


def closing_over(net: nn.Module) -> Callable[..., Any]:
    return lambda x, t: net(x)


@pytest.mark.parametrize(
    "wrap",
    [
        Wrapper,
        closing_over,
        lambda net: Wrapper(net).method,
        lambda net: functools.partial(closing_over(net), t=0),
        lambda net: functools.partial(lambda net, x, t: net(x), net),
        lambda net: lambda x, t: Wrapper(net)(x, t),
        lambda net: Wrapper(closing_over(Wrapper(net))),  # type: ignore[arg-type]
        lambda net: calls_a_global,
    ],
)
@torch.no_grad()
def test_the_weights_that_a_callable_holds(wrap: Callable[[nn.Module], Any]) -> None:
    fingerprint = Fingerprint.of(wrap(NET))
    assert fingerprint.changed() is None
    NET.weight.add_(1)
    assert str(fingerprint.changed()).endswith("weight")


def test_a_callable_without_weights() -> None:
    assert Fingerprint.of(lambda x, t: x + t).changed() is None
    assert Fingerprint.of(torch.relu).changed() is None


class Guided(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(2, 2)
        self.net.gain = 0.5
        self.options = {"scale": 1.0, "names": ["a", "b"]}

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.net(x) * self.options["scale"]


def regained(m: Guided) -> None:
    m.net.gain = 0.75


def rescaled(m: Guided) -> None:
    m.options["scale"] = 2.0


def renamed(m: Guided) -> None:
    m.options["names"].append("c")


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (regained, "net.gain"),
        (rescaled, "options.scale"),
        (renamed, "options.names.2"),
        (lambda m: m.train(not m.training), None),
    ],
)
def test_plain_values_count_where_they_are_asked_for(
    change: Callable[[Guided], Any], name: str | None
) -> None:
    m = Guided()
    fingerprint, of_weights = Fingerprint.of(m, values=True), Fingerprint.of(m)
    change(m)
    assert (fingerprint.changed(), fingerprint.moved()) == (name, name)
    assert of_weights.changed() is None


def test_weights_in_containers() -> None:
    models = {"ema": nn.Linear(2, 2)}
    fingerprint = Fingerprint.of(lambda x, t: models["ema"](x))
    assert fingerprint.changed() is None
    models["ema"] = nn.Linear(2, 2)
    assert fingerprint.moved() == "models.ema.weight"
