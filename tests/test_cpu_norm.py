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

from fastddpm.kernels.group_norm_silu.cases import CASES, Case
from fastddpm.ops.program_abi import Norm, Statistics

pytestmark = needs_library


class Call(NamedTuple):
    """A GroupNorm of one map, or of two that are joined by channels, for two steps."""

    name: str
    maps: tuple[Tensor, ...]  # [B, C1, H, W], [B, C2, H, W]
    groups: int
    weight: Tensor | None  # [C]
    bias: Tensor | None  # [C]
    film: Tensor | None = None  # [2, B, 2 C], a row for each step
    eps: float = 1e-6

    @property
    def x(self) -> Tensor:
        return torch.cat(self.maps, dim=1)

    def sample(self, b: int) -> Call:
        """The call of one sample alone."""
        film = None if self.film is None else self.film[:, b : b + 1]
        return self._replace(maps=tuple(v[b : b + 1] for v in self.maps), film=film)

    def torchs(self, dtype: torch.dtype, step: int = 0) -> Tensor:
        """GroupNorm and FiLM as torch computes them in this dtype."""
        weight, bias = (None if v is None else v.to(dtype) for v in (self.weight, self.bias))
        y = F.group_norm(self.x.to(dtype), self.groups, weight, bias, self.eps)
        if self.film is None:
            return y
        a, b = self.film[step].to(dtype)[..., None, None].chunk(2, dim=1)
        return y * (1 + a) + b


def call_of(case: Case) -> Call:
    """The norm of a case of the whole op, without what it sums before."""
    tensors = case.tensors(torch.float32)
    maps = tuple(tensors[name] for name in ("x", "skip") if name in tensors)
    call = Call(case.name, maps, case.num_groups, tensors["weight"], tensors["bias"])
    if not case.film:
        return call
    rows = torch.cat([tensors["scale"], tensors["shift"]], dim=1)
    return call._replace(film=torch.stack([rows, -rows]))


def plain(name: str, channels: tuple[int, ...], size: tuple[int, int], groups: int) -> Call:
    """A call without weight and bias, two samples of normal numbers."""
    generator = torch.Generator().manual_seed(sum(channels))
    maps = [
        torch.randn(2, count, *size, generator=generator, dtype=torch.float32) for count in channels
    ]
    return Call(name, tuple(maps), groups, None, None)


def scaled(call: Call, std: float, mean: float, **changes: object) -> Call:
    return call._replace(maps=tuple(v * std + mean for v in call.maps), **changes)


CALLS = (
    *(call_of(case) for case in CASES if len(case.shape) == 4 and case.shape[0] > 0),
    plain("straddling_a_vector", (7, 14), (5, 9), 3),
    plain("one_channel", (1,), (5, 9), 1),
    plain("three_channels", (3,), (6, 6), 3),
    plain("one_group", (130,), (3, 5), 1),
    plain("one_pixel_each", (6,), (1, 1), 6),
    plain("one_column", (16,), (13, 1), 4),
    scaled(plain("joined_far_from_zero", (24, 8), (9, 7), 4), 1.0, -1000.0),
    scaled(plain("tiny", (32,), (8, 8), 8), 1e-6, 1e-4, eps=1e-12),
    scaled(plain("huge", (32,), (8, 8), 8), 1e15, 1e15),
)
every_call = pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)


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
    maps = [as_map(part) for part in call.maps]
    statistics = [statistics_of(part, threads) for part in maps]
    batch, total, height, width = call.x.shape
    weight, bias, film = (
        None if v is None else as_buffer(v) for v in (call.weight, call.bias, call.film)
    )
    norm = Buffer(batch * 3 * aligned(total))
    arguments = Norm(
        statistics=tuple(v.address for v in statistics),
        stride=tuple(part.stride for part in maps),
        channels=tuple(part.channels for part in maps),
        batch=batch,
        height=height,
        width=width,
        groups=call.groups,
        eps=call.eps,
        weight=None if weight is None else weight.address,
        bias=None if bias is None else bias.address,
        norm=norm.address,
    )
    if film is not None:
        arguments.modulation = row(film, 2 * total, batch * 2 * total)
    run(arguments, threads=threads, step=step)
    norm.check_border()
    return norm.numbers.reshape(batch, 3, -1).clone()


def applied(call: Call, norm: Tensor) -> Tensor:
    mean, scale, shift = norm[:, :, : call.x.shape[1], None, None].unbind(1)
    return (call.x - mean) * scale + shift


@pytest.mark.parametrize("step", [0, 1])
@every_call
def test_coefficients_normalise_as_torch(call: Call, step: int, isa: str) -> None:
    norm = coefficients(call, step=step)
    exact = call.torchs(torch.float64, step)
    assert_as_accurate(applied(call, norm), call.torchs(torch.float32, step), exact)
    assert (norm[:, :, call.x.shape[1] :] == 0).all()


@every_call
def test_statistics_of_strips(call: Call, isa: str) -> None:
    x = call.maps[0]
    given = as_map(x)
    found = statistics_of(given, 1).numbers.reshape(len(x), -1, 2, given.stride)
    found = found[..., : given.channels]
    for strip, rows in enumerate(x.split(4, dim=2)):
        exact = rows.double().flatten(2)
        mean, variance = exact.mean(2), exact.var(2, correction=0)
        # Two ulp of the numbers that are added up.
        bound = 2.0**-22 * (mean.abs() + variance.sqrt())
        assert ((found[:, strip, 0] - mean).abs() <= bound).all()
        deviations = variance * exact.shape[2]
        assert ((found[:, strip, 1] - deviations).abs() <= 2.0**-21 * deviations).all()


@every_call
def test_threads_and_batches_change_no_bit(call: Call, isa: str) -> None:
    whole = coefficients(call)
    for threads in (2, 3, 40):
        assert same_bits(coefficients(call, threads), whole)
    for b in range(len(call.x)):
        assert same_bits(coefficients(call.sample(b), 2)[0], whole[b])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_group(value: float, isa: str) -> None:
    call = plain("strange", (12, 4), (5, 6), 4)
    clean = coefficients(call)
    call.maps[0][1, 5, 2, 3] = value
    norm = coefficients(call)
    assert norm[1, 1, 4:8].isnan().all()
    norm[1, :, 4:8] = clean[1, :, 4:8]
    assert same_bits(norm, clean)
