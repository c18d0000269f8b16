"""BoundStep: the op's own numbers, and the calls that it does not take."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable

import pytest
import torch
from op_backends import needs_library, same_bits
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fastddpm import GaussianDiffusion, NoiseSchedule, ops
from fastddpm.ops.bound_step import BoundStep, plain

DIFFUSION = GaussianDiffusion(NoiseSchedule.linear(12), variance="fixed_large")


@needs_library
@pytest.mark.parametrize("prediction", ["epsilon", "epsilon_in_x"])
@pytest.mark.parametrize("variance", ["fixed_large", "learned_range"])
@pytest.mark.parametrize("clip", [None, 0.7])
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 1), (4, 3, 33), (0, 3, 4, 4)])
def test_is_the_op_bit_for_bit(
    shape: tuple[int, ...], clip: float | None, variance: str, prediction: str
) -> None:
    generator = torch.Generator().manual_seed(0)
    x, output, z = (torch.randn(shape, generator=generator) for _ in range(3))
    if x.numel():
        x.view(-1)[0] = torch.nan
    if variance == "learned_range":
        output = torch.cat([output, z], dim=1)
    table = DIFFUSION.step_table().float()
    step = BoundStep(table, clip, variance, prediction)
    for row in (0, 5, 11):
        expected = ops.ancestral_step(
            *(x, output, z, table, torch.tensor([row])),
            prediction=prediction,
            variance=variance,
            clip=clip,
            backend="cpu",
        )
        for a, b in zip(step(x, output, z, row), expected, strict=True):
            assert same_bits(a, b) and a.is_contiguous()


@needs_library
def test_a_row_outside_of_the_table() -> None:
    x = torch.zeros(1, 1)
    step = BoundStep(DIFFUSION.step_table().float(), 1.0)
    for row in (-1, 12):
        with pytest.raises(AssertionError):
            step(x, x, x, row)


@needs_library
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_has_a_table_of_its_own(copied: Callable[[BoundStep], BoundStep]) -> None:
    x, table = torch.ones(2, 3), torch.ones(12, 10)
    first = BoundStep(table, 5.0)
    second = copied(first)
    table.zero_()
    assert torch.equal(first(x, x, x, 3)[0], torch.zeros(2, 3))
    # 1 (x + x) + 1 x + 1 z
    assert torch.equal(second(x, x, x, 3)[0], torch.full((2, 3), 4.0))


@needs_library
def test_only_where_the_library_is_asked_for() -> None:
    assert BoundStep.available()
    with ops.using("reference"):
        assert not BoundStep.available()


@pytest.mark.parametrize(
    "other",
    [
        lambda x: x.double(),
        lambda x: x.t(),
        lambda x: x.to("meta"),
        lambda x: x.clone().requires_grad_(),
        nn.Parameter,
    ],
)
def test_other_tensors_are_not_plain(other: Callable[[Tensor], Tensor]) -> None:
    x = torch.zeros(2, 3)
    assert plain(x) and plain(x, x)
    assert not plain(x, other(x))


def test_nothing_is_plain_where_calls_are_looked_at() -> None:
    x, seen = torch.zeros(2, 3), []
    with FlopCounterMode(display=False):
        assert not plain(x)

    def noting(y: Tensor) -> Tensor:
        seen.append(plain(y))
        return y + 1

    torch.jit.trace(noting, (x,), check_trace=False)
    assert seen == [False]
    compiled = torch.compile(functools.partial(_plain_or_not), backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), x)


def _plain_or_not(x: Tensor) -> Tensor:
    return x + 1 if plain(x) else x * 1
