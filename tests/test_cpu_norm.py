"""Statistics and GroupNorm's coefficients on the CPU, against float64."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from cpu_instructions import (
    Buffer,
    Map,
    aligned,
    as_buffer,
    as_map,
    assert_as_accurate,
    empty_statistics,
    row,
    run,
)
from op_backends import needs_library, same_bits
from torch import Tensor
from torch.nn import functional as F

from fastddpm.ops.program_abi import Norm, Statistics

pytestmark = needs_library


class Case(NamedTuple):
    name: str
    batch: int
    channels: tuple[int, ...]  # of one map, or of two that are joined
    height: int
    width: int
    groups: int
    mean: float = 0.0
    std: float = 1.0
    affine: bool = True
    film: bool = False
    eps: float = 1e-6


CASES = (
    Case("cifar_32", 2, (128,), 32, 32, 32),
    Case("cifar_16_joined", 2, (256, 128), 16, 16, 32),
    Case("cifar_4_film", 2, (256,), 4, 4, 32, film=True, eps=1e-5),
    Case("straddling", 2, (40, 24), 8, 8, 4),
    Case("straddling_a_vector", 3, (7, 14), 5, 9, 3, film=True),
    Case("threes", 2, (16, 8), 4, 4, 8, affine=False),
    Case("mnist_28", 2, (32,), 28, 28, 8),
    Case("mnist_7", 3, (64,), 7, 7, 8),
    Case("one_channel", 2, (1,), 5, 9, 1, affine=False),
    Case("three_channels", 2, (3,), 6, 6, 3),
    Case("one_group", 2, (130,), 3, 5, 1),
    Case("one_pixel", 2, (64,), 1, 1, 8),
    Case("one_pixel_each", 2, (6,), 1, 1, 6),
    Case("one_column", 2, (16,), 13, 1, 4),
    Case("far_from_zero", 2, (32,), 16, 16, 8, mean=1000.0),
    Case("far_from_zero_joined", 2, (24, 8), 9, 7, 4, mean=-1000.0),
    Case("tiny", 2, (32,), 8, 8, 8, mean=1e-4, std=1e-6, eps=1e-12),
    Case("huge", 2, (32,), 8, 8, 8, mean=1e15, std=1e15),
)
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


class Call:
    """The tensors of a case."""

    def __init__(self, case: Case) -> None:
        generator = torch.Generator().manual_seed(sum(case.channels) + case.height)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float32)

        total = sum(case.channels)
        sizes = (case.batch, total, case.height, case.width)
        self.case = case
        self.x = normal(*sizes) * case.std + case.mean
        self.weight = normal(total) if case.affine else None
        self.bias = normal(total) if case.affine else None
        # A row for each of two steps.
        self.film = normal(2, case.batch, 2 * total) if case.film else None

    def torchs(self, dtype: torch.dtype, step: int = 0) -> Tensor:
        """GroupNorm and FiLM as torch computes them in this dtype."""

        def cast(v: Tensor | None) -> Tensor | None:
            return None if v is None else v.to(dtype)

        case = self.case
        y = F.group_norm(
            self.x.to(dtype), case.groups, cast(self.weight), cast(self.bias), case.eps
        )
        if self.film is None:
            return y
        a, b = self.film[step].to(dtype)[..., None, None].chunk(2, dim=1)
        return y * (1 + a) + b


def statistics_of(given: Map, threads: int) -> Buffer:
    batch, height, width = given.shape
    made = empty_statistics(given)
    run(
        Statistics(given.address, given.stride, given.channels, batch, height, width, made.address),
        threads=threads,
    )
    made.check_border()
    return made


def coefficients(call: Call, threads: int = 1, step: int = 0) -> Tensor:
    """[B, 3, S] as the two instructions compute it."""
    case = call.case
    maps = [as_map(part) for part in call.x.split(list(case.channels), dim=1)]
    statistics = [statistics_of(part, threads) for part in maps]
    total, width = sum(case.channels), aligned(sum(case.channels))
    weight, bias, film = (
        None if v is None else as_buffer(v) for v in (call.weight, call.bias, call.film)
    )
    norm = Buffer(case.batch * 3 * width)
    arguments = Norm(
        statistics=tuple(v.address for v in statistics),
        stride=tuple(part.stride for part in maps),
        channels=case.channels,
        batch=case.batch,
        height=case.height,
        width=case.width,
        groups=case.groups,
        eps=case.eps,
        weight=None if weight is None else weight.address,
        bias=None if bias is None else bias.address,
        norm=norm.address,
    )
    if film is not None:
        arguments.modulation = row(film, 2 * total, case.batch * 2 * total)
    run(arguments, threads=threads, step=step)
    norm.check_border()
    return norm.numbers.reshape(case.batch, 3, width).clone()


def applied(call: Call, norm: Tensor) -> Tensor:
    mean, scale, shift = norm[:, :, : call.x.shape[1], None, None].unbind(1)
    return (call.x - mean) * scale + shift


@pytest.mark.parametrize("step", [0, 1])
@every_case
def test_coefficients_normalise_as_torch(case: Case, step: int, isa: str) -> None:
    call = Call(case)
    norm = coefficients(call, step=step)
    exact = call.torchs(torch.float64, step)
    assert_as_accurate(applied(call, norm), call.torchs(torch.float32, step), exact)
    assert (norm[:, :, call.x.shape[1] :] == 0).all()


@every_case
def test_statistics_of_strips(case: Case, isa: str) -> None:
    call = Call(case)
    given = as_map(call.x)
    found = statistics_of(given, 1).numbers.reshape(case.batch, -1, 2, given.stride)
    found = found[..., : given.channels]
    for strip, rows in enumerate(call.x.split(4, dim=2)):
        exact = rows.double().flatten(2)
        mean, variance = exact.mean(2), exact.var(2, correction=0)
        # Two ulp of the numbers that are added up.
        bound = 2.0**-22 * (mean.abs() + variance.sqrt())
        assert ((found[:, strip, 0] - mean).abs() <= bound).all()
        deviations = variance * exact.shape[2]
        assert ((found[:, strip, 1] - deviations).abs() <= 2.0**-21 * deviations).all()


@every_case
def test_threads_and_batches_change_no_bit(case: Case, isa: str) -> None:
    call = Call(case)
    whole = coefficients(call)
    for threads in (2, 3):
        assert same_bits(coefficients(call, threads), whole)
    for sample in range(case.batch):
        alone = Call(case._replace(batch=1))
        alone.x = call.x[sample : sample + 1]
        alone.weight, alone.bias = call.weight, call.bias
        alone.film = None if call.film is None else call.film[:, sample : sample + 1]
        assert same_bits(coefficients(alone, 2)[0], whole[sample])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_group(value: float, isa: str) -> None:
    case = Case("strange", 2, (12, 4), 5, 6, 4)
    call = Call(case)
    clean = coefficients(call)
    call.x[1, 5, 2, 3] = value
    norm = coefficients(call)
    assert norm[1, 0, 4:8].isnan().all() or norm[1, 1, 4:8].isnan().all()
    norm[1, :, 4:8] = clean[1, :, 4:8]
    assert same_bits(norm, clean)
