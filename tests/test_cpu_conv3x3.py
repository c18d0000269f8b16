"""The CPU program's 3x3 convolution: exact enough, and the same bits however it is split."""

from __future__ import annotations

import itertools
from typing import NamedTuple
from unittest import mock

import pytest
import torch
from cpu_instructions import (
    Buffer,
    Map,
    aligned,
    as_buffer,
    as_map,
    empty_map,
    empty_statistics,
    from_map,
    pack_conv3x3,
    reads,
    row,
    run,
    writes,
)
from op_backends import ISAS, instruction_set, needs_library, same_bits
from torch import Tensor
from torch.nn import functional as F

from fastddpm.kernels.conv3x3.cases import CASES, NETWORK, Case
from fastddpm.kernels.conv3x3.reference import conv3x3, strip_statistics
from fastddpm.ops.program_abi import Activation, Conv3x3, Packing

pytestmark = needs_library

SMALL = [case for case in CASES if case not in NETWORK]
BY_NAME = {case.name: case for case in CASES}
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
each_small_case = pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
each_isa = pytest.mark.parametrize("isa", ISAS)


class Result(NamedTuple):
    y: Tensor  # [B, C, H, W]
    statistics: Tensor  # [B, strips, 2, C]


def padded_norm(norm: Tensor) -> Buffer:
    """[B, 3, C] with C rounded up, NaN beyond."""
    batch, three, channels = norm.shape
    wide = torch.full((batch, three, aligned(channels)), torch.nan)
    wide[..., :channels] = norm
    return as_buffer(wide)


def convolve(
    case: Case,
    tensors: dict[str, Tensor],
    *,
    packing: Packing = Packing.FLOAT32,
    threads: int = 1,
    in_place: bool = False,
) -> Result:
    """The call as one instruction. in_place: the output is written over the residual."""
    maps = [as_map(tensors[name]) for name in ("x", "skip") if name in tensors]
    norm = padded_norm(tensors["norm"]) if "norm" in tensors else None
    activation = Activation.SILU if case.activation == "silu" else Activation.NONE
    batch, out, height, width = (len(tensors["x"]), *case.shape[1:])
    residual = as_map(tensors["residual"]) if "residual" in tensors else None
    y = residual if in_place and residual is not None else empty_map(batch, out, height, width)
    bias, weights = as_buffer(tensors["bias"]), pack_conv3x3(tensors["weight"], packing)
    rows = as_buffer(tensors["row"]) if "row" in tensors else None
    statistics = empty_statistics(y)
    output = writes(
        y,
        bias=bias,
        row=None if rows is None else row(rows, out),
        residual=residual,
        divisor=case.divisor,
        statistics=statistics,
    )
    read = reads(*maps, norm=norm, activation=activation)
    sizes = (batch, height, width, case.doubled)
    run(Conv3x3(read, output, *sizes, weights.address, packing), threads=threads)
    return Result(from_map(y), from_statistics(statistics, y))


def from_statistics(statistics: Buffer, y: Map) -> Tensor:
    statistics.check_border()
    found = statistics.numbers.view(len(from_map(y)), -1, 2, y.stride)
    return found[..., : y.channels].clone()


def expected(case: Case, tensors: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
    given = {name: value.to(dtype) for name, value in tensors.items()}
    return conv3x3(**given, **case.settings())


def relative_error(found: Tensor, truth: Tensor) -> float:
    return float((found.double() - truth).norm() / truth.norm())


def direct_sum(case: Case, tensors: dict[str, Tensor]) -> Tensor:
    """The call in float32, each output one sum from the first product to the last."""

    def convolve_one_by_one(h: Tensor, weight: Tensor, bias: Tensor, padding: int) -> Tensor:
        height, width = h.shape[2:]
        around = F.pad(h, (padding,) * 4)
        y = torch.zeros(len(h), len(weight), height, width)
        for channel in range(h.shape[1]):
            for i, j in itertools.product(range(3), repeat=2):
                factor = weight[None, :, channel, i, j, None, None]
                y.addcmul_(around[:, None, channel, i : i + height, j : j + width], factor)
        return y + bias[:, None, None]

    with mock.patch.object(F, "conv2d", convolve_one_by_one):
        return expected(case, tensors, torch.float32)


@each_isa
@each_case
def test_error_is_that_of_a_direct_sum_and_the_transforms(case: Case, isa: str) -> None:
    """Against float64: twice the error of one chain of sums in float32, and 4 units in the last
    place, 2^-24, for the transforms, whose roundings do not grow with the channels.

    This is not twice the error of torch, which sums in blocks where it multiplies matrices: there
    the transforms alone exceed it. ``python -m benchmarks.cpu_accuracy`` shows both.
    """
    tensors = case.tensors()
    truth = expected(case, tensors, torch.float64)
    with instruction_set(isa):
        found = convolve(case, tensors).y
    own = relative_error(direct_sum(case, tensors), truth)
    assert relative_error(found, truth) <= 2 * own + 4 * 2.0**-24


@each_isa
@each_case
def test_statistics(case: Case, isa: str) -> None:
    """Of what was written. Where the mean is far from 0, the digits of the mean are the limit."""
    with instruction_set(isa):
        found = convolve(case, case.tensors())
    truth = strip_statistics(found.y.double())
    distance = float(found.y.double().mean().abs() / found.y.double().std())
    for own, right in zip(found.statistics.unbind(2), truth.unbind(2), strict=True):
        assert (own - right).norm() <= 4 * 2.0**-24 * (1 + distance) * right.norm()


@each_isa
@each_small_case
def test_batches_and_threads(case: Case, isa: str) -> None:
    """Image b is the same, bit for bit, alone or in a batch and by any number of threads."""
    tensors = case.tensors()
    tensors |= {
        name: torch.cat([value] * 3)
        + torch.arange(3.0).repeat_interleave(len(value)).view(-1, *[1] * (value.ndim - 1))
        for name, value in tensors.items()
        if name not in ("weight", "bias")
    }
    with instruction_set(isa):
        whole = convolve(case, tensors)
        for threads in (2, 3, 5, 40):
            again = convolve(case, tensors, threads=threads)
            assert all(same_bits(*pair) for pair in zip(whole, again, strict=True))
        for sample in range(len(whole.y)):
            alone = {
                name: value if name in ("weight", "bias") else value[sample : sample + 1]
                for name, value in tensors.items()
            }
            again = convolve(case, alone, threads=1 + sample % 2)
            assert all(
                same_bits(of_whole[sample : sample + 1], own)
                for of_whole, own in zip(whole, again, strict=True)
            )


@each_isa
@pytest.mark.parametrize("name", ["all", "last", "deep", "32_384_128_joined", "doubled_odd"])
def test_transformed_weights_change_nothing(name: str, isa: str) -> None:
    case = BY_NAME[name]
    tensors = case.tensors()
    with instruction_set(isa):
        a = convolve(case, tensors)
        b = convolve(case, tensors, packing=Packing.TRANSFORMED)
    assert all(same_bits(*pair) for pair in zip(a, b, strict=True))


@each_isa
@each_small_case
def test_half_precision_weights(case: Case, isa: str) -> None:
    """The rounded weights' own result: each channel's weights over a power of two, in float16."""
    tensors = case.tensors()
    tensors["weight"] *= torch.logspace(-6, 6, len(tensors["weight"])).view(-1, 1, 1, 1)
    largest = tensors["weight"].abs().amax((1, 2, 3), keepdim=True)
    scale = torch.exp2(torch.frexp(largest).exponent.float() - 15)
    rounded = tensors | {"weight": (tensors["weight"] / scale).half().float() * scale}
    assert not torch.equal(rounded["weight"], tensors["weight"])
    with instruction_set(isa):
        found = convolve(case, tensors, packing=Packing.FLOAT16)
        same = convolve(case, rounded)
    assert all(same_bits(*pair) for pair in zip(found, same, strict=True))


@each_isa
@pytest.mark.parametrize("name", ["all", "phases"])
def test_over_its_own_residual(name: str, isa: str) -> None:
    case = BY_NAME[name]
    with instruction_set(isa):
        apart = convolve(case, case.tensors(), threads=2)
        over = convolve(case, case.tensors(), threads=2, in_place=True)
    assert all(same_bits(*pair) for pair in zip(apart, over, strict=True))


@each_isa
def test_not_a_number_stays_where_it_is(isa: str) -> None:
    """One NaN reaches its own image alone, and the pixels around it."""
    case = BY_NAME["plain"]
    tensors = case.tensors()
    tensors["x"][1, 5, 1, 1] = torch.nan
    with instruction_set(isa):
        y = convolve(case, tensors).y
    assert not y[0].isnan().any()
    assert y[1, :, :3, :3].isnan().all()
    assert not y[1, :, 4:, 4:].isnan().any()
