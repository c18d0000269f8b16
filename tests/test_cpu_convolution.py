"""fastddpm_convolution: every instruction set against the specification in float64."""

from __future__ import annotations

from typing import Any

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
    pack_convolution,
    reads,
    row,
    run,
    writes,
)
from op_backends import needs_library, same_bits
from torch import Tensor

from fastddpm.kernels.convolution.cases import CASES, NETWORK_CASES, Case
from fastddpm.kernels.convolution.reference import convolution
from fastddpm.ops.program_abi import Activation, Convolution, Packing

pytestmark = needs_library
every_case = pytest.mark.parametrize("case", CASES + NETWORK_CASES, ids=lambda case: case.name)
ROUNDING = 2.0**-24


def norm_buffer(norm: Tensor) -> Buffer:
    """norm [B, 3, C] as an instruction reads it, [B, 3, S]; NaN beyond C."""
    batch, three, channels = norm.shape
    wide = torch.full((batch, three, aligned(channels)), torch.nan)
    wide[..., :channels] = norm
    return as_buffer(wide)


class Call:
    """A case's instruction, for some samples of its batch."""

    def __init__(
        self,
        case: Case,
        tensors: dict[str, Any],
        samples: slice = slice(None),
        packing: Packing = Packing.FLOAT32,
        statistics: bool = False,
    ) -> None:
        self.maps = [as_map(x[samples]) for x in tensors["maps"]]
        batch = self.maps[0].shape[0]
        self.y = empty_map(batch, case.out, *case.out_size)
        self.statistics = empty_statistics(self.y) if statistics else None
        self.weights = pack_convolution(tensors["weight"], packing)
        self.bias = as_buffer(tensors["bias"])
        own = {name: t[samples] for name, t in tensors.items() if name in ("norm", "row")}
        self.norm = norm_buffer(own["norm"]) if case.norm else None
        self.row = as_buffer(own["row"]) if case.row else None
        self.residual = as_map(tensors["residual"][samples]) if case.residual else None
        self.arguments = Convolution(
            x=reads(*self.maps, norm=self.norm, activation=Activation(case.activation == "silu")),
            y=writes(
                self.y,
                bias=self.bias,
                row=None if self.row is None else row(self.row, case.out),
                residual=self.residual,
                divisor=case.divisor,
                statistics=self.statistics,
            ),
            batch=batch,
            height=case.out_size[0],
            width=case.out_size[1],
            input_height=case.size[0],
            input_width=case.size[1],
            kernel=case.kernel,
            stride=case.stride,
            padding=case.padding,
            weights=self.weights.address,
            packing=packing,
        )

    def output(self, threads: int = 1) -> Tensor:
        run(self.arguments, threads=threads)
        return from_map(self.y)


def in_float64(tensors: dict[str, Any]) -> dict[str, Any]:
    doubles = {name: t.double() for name, t in tensors.items() if isinstance(t, Tensor)}
    return doubles | {"maps": [x.double() for x in tensors["maps"]]}


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def assert_as_good_as_torch(found: Tensor, case: Case, tensors: dict[str, Any]) -> None:
    expected = convolution(**in_float64(tensors), **case.settings())
    torchs = relative_error(convolution(**tensors, **case.settings()), expected)
    assert relative_error(found, expected) <= 2 * max(torchs, ROUNDING)


@every_case
def test_against_float64(case: Case, isa: str) -> None:
    tensors = case.tensors()
    assert_as_good_as_torch(Call(case, tensors).output(), case, tensors)


@every_case
def test_half_precision_weights(case: Case, isa: str) -> None:
    tensors = case.tensors()
    found = Call(case, tensors, packing=Packing.FLOAT16).output()
    # Each output channel's largest weight is brought to just below 2^15.
    weight = tensors["weight"]
    _, exponent = torch.frexp(weight.flatten(1).abs().amax(1))
    scale = torch.ldexp(torch.ones(case.out), exponent - 15)[:, None, None, None]
    tensors["weight"] = (weight / scale).half().float() * scale
    assert_as_good_as_torch(found, case, tensors)


@every_case
def test_samples_do_not_depend_on_their_batch_or_on_threads(case: Case, isa: str) -> None:
    case = case._replace(batch=3)
    tensors = case.tensors()
    together = Call(case, tensors).output()
    for threads in (1, 2, 3, 40):
        for samples in (slice(0, 1), slice(1, 3), slice(0, 3)):
            found = Call(case, tensors, samples).output(threads)
            assert same_bits(found, together[samples])


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (7, 7), (5, 9), (28, 28)])
@pytest.mark.parametrize("out", [1, 40, 150])
def test_statistics(size: tuple[int, int], out: int, isa: str) -> None:
    case = Case("statistics", 2, (19,), size, out, 3, 1, 1, after=1)
    tensors = case.tensors()
    tensors["bias"] += 1000.0  # E[x^2] - E[x]^2 would lose the variance
    found = {}
    for threads in (1, 3):
        call = Call(case, tensors, statistics=True)
        y = call.output(threads)
        assert call.statistics is not None
        call.statistics.check_border()
        found[threads] = call.statistics.numbers.view(2, -1, 2, call.y.stride)[..., :out]
    assert same_bits(found[1], found[3])
    for strip, rows in enumerate(y.double().split(4, dim=2)):
        mean, m2 = found[1][:, strip].double().unbind(1)
        n = rows.shape[2] * rows.shape[3]
        torch.testing.assert_close(mean, rows.mean((2, 3)), rtol=2e-7, atol=0)
        expected = rows.var((2, 3), correction=0) * n
        torch.testing.assert_close(m2, expected, rtol=1e-4, atol=1e-8)


def test_the_output_may_be_the_residual(isa: str) -> None:
    case = Case("in_place", 2, (48,), (13, 5), 40, residual=True)
    tensors = case.tensors()
    apart = Call(case, tensors).output()
    call = Call(case, tensors)
    assert call.residual is not None
    call.y.pixels.copy_(call.residual.pixels)
    call.arguments.y.residual = call.y.address
    assert same_bits(call.output(2), apart)


def test_rows_of_steps(isa: str) -> None:
    """The row of the step is read."""
    case = Case("steps", 2, (8,), (3, 3), 20, row=True)
    tensors = case.tensors()
    rows = torch.randn(5, 20)
    call = Call(case, tensors)
    table = as_buffer(rows)
    call.arguments.y.row = row(table, sample_stride=0, step_stride=20)
    run(call.arguments, step=3)
    tensors["row"] = rows[3].expand(2, 20)
    assert_as_good_as_torch(from_map(call.y), case, tensors)


@pytest.mark.parametrize("packing", [Packing.FLOAT32, Packing.FLOAT16])
@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_show(number: float, packing: Packing, isa: str) -> None:
    case = Case("weights", 1, (8,), (3, 3), 20)
    tensors = case.tensors()
    tensors["weight"][7, 3] = number
    found = Call(case, tensors, packing=packing).output()
    assert not found[:, 7].isfinite().any()
    assert found[:, :7].isfinite().all() and found[:, 8:].isfinite().all()


def test_tiny_and_huge_half_precision_weights(isa: str) -> None:
    """The channel's scale keeps its weights in the range of halves, subnormals among them."""
    case = Case("range", 1, (64,), (3, 3), 4)
    tensors = case.tensors()
    tensors["bias"].zero_()
    tensors["weight"] *= torch.tensor([1e-20, 1e25, 1.0, 0.0])[:, None, None, None]
    tensors["weight"][2, :32] *= 1e-6
    found = Call(case, tensors, packing=Packing.FLOAT16).output()
    expected = convolution(**in_float64(tensors), **case.settings())
    for channel in range(3):
        assert relative_error(found[:, channel], expected[:, channel]) < 1e-3
    assert (found[:, 3] == 0).all()


def test_nan_of_a_pixel_stays_in_its_pixel(isa: str) -> None:
    case = Case("nan", 2, (20,), (6, 6), 40, norm=True, activation="silu")
    tensors = case.tensors()
    tensors["maps"][0][1, 5, 2, 3] = torch.nan
    found = Call(case, tensors).output()
    expected = torch.zeros(2, 6, 6, dtype=torch.bool)
    expected[1, 2, 3] = True
    assert torch.equal(found.isnan().all(1), expected)
    assert torch.equal(found.isnan().any(1), expected)


def test_joined_maps_may_be_views(isa: str) -> None:
    """Of a wider map: the stride is not the channels."""
    case = Case("views", 2, (10, 12), (4, 5), 24)
    tensors = case.tensors()
    call = Call(case, tensors)
    wide: list[Map] = [as_map(x, stride=64) for x in tensors["maps"]]
    plain = call.output()
    call.arguments.x = reads(*wide)
    assert same_bits(call.output(), plain)
