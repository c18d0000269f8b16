"""The pointwise instruction on the CPU, against float64 on every case."""

from __future__ import annotations

import pytest
import torch
from cpu_instructions import (
    Buffer,
    aligned,
    as_buffer,
    as_map,
    assert_as_accurate,
    empty_map,
    empty_statistics,
    from_map,
    reads,
    row,
    run,
    writes,
)
from op_backends import needs_library, same_bits
from torch import Tensor

from fastddpm.kernels.pointwise.cases import CASES, Case
from fastddpm.kernels.pointwise.reference import RESAMPLES, pointwise
from fastddpm.ops.program_abi import Activation, Pointwise, Statistics

pytestmark = needs_library
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def as_norm(coefficients: Tensor) -> Buffer:
    """[B, 3, C] with NaN in the lanes up to the next multiple of ALIGN."""
    batch, _, channels = coefficients.shape
    made = Buffer(batch * 3 * aligned(channels))
    made.numbers.view(batch, 3, -1)[..., :channels] = coefficients
    return made


def computed(
    case: Case, tensors: dict[str, Tensor], threads: int = 1, in_place: bool = False
) -> tuple[Tensor, Buffer | None]:
    """y and its statistics by the instruction; in_place: y is the residual's own memory."""
    batch = tensors["x"].shape[0]
    maps = [as_map(tensors[name]) for name in ("x", "skip") if name in tensors]
    norm = as_norm(tensors["norm"]) if "norm" in tensors else None
    bias, rows = (as_buffer(tensors[n]) if n in tensors else None for n in ("bias", "row"))
    residual = as_map(tensors["residual"]) if "residual" in tensors else None
    _, channels, height, width = case.written
    y = residual if in_place and residual is not None else empty_map(batch, channels, height, width)
    statistics = empty_statistics(y) if case.statistics else None
    arguments = Pointwise(
        x=reads(
            *maps,
            norm=norm,
            activation=Activation.SILU if case.activation == "silu" else Activation.NONE,
        ),
        y=writes(
            y,
            bias=bias,
            row=None if rows is None else row(rows, channels),
            residual=residual,
            divisor=case.divisor,
            statistics=statistics,
        ),
        batch=batch,
        height=height,
        width=width,
        resample=RESAMPLES.index(case.resample),
    )
    run(arguments, threads=threads)
    return from_map(y), statistics


@every_case
def test_is_the_formula(case: Case, isa: str) -> None:
    y, _ = computed(case, case.tensors())
    exact = pointwise(**case.tensors(torch.float64), **case.settings())
    assert_as_accurate(y, pointwise(**case.tensors(), **case.settings()), exact)


@pytest.mark.parametrize("case", [c for c in CASES if c.statistics], ids=lambda c: c.name)
def test_statistics_are_those_of_what_is_written(case: Case, isa: str) -> None:
    y, statistics = computed(case, case.tensors(), threads=2)
    assert statistics is not None
    statistics.check_border()
    given = as_map(y)
    expected = empty_statistics(given)
    sizes = (given.stride, given.channels, *given.shape)
    run(Statistics(given.address, *sizes, expected.address))

    def lanes(found: Buffer) -> Tensor:
        return found.numbers.view(-1, given.stride)[:, : given.channels].contiguous()

    assert same_bits(lanes(statistics), lanes(expected))


@every_case
def test_threads_and_batches_change_no_bit(case: Case, isa: str) -> None:
    tensors = case.tensors()
    whole, statistics = computed(case, tensors)
    for threads in (2, 3, 40):
        again, of_again = computed(case, tensors, threads)
        assert same_bits(again, whole)
        if statistics is not None and of_again is not None and case.channels % 16 == 0:
            assert same_bits(of_again.numbers, statistics.numbers)
    for sample in range(case.shape[0]):
        one = {n: v if n == "bias" else v[sample : sample + 1] for n, v in tensors.items()}
        assert same_bits(computed(case, one, 2)[0][0], whole[sample])


@pytest.mark.parametrize("case", [c for c in CASES if c.residual], ids=lambda c: c.name)
def test_the_output_may_be_the_residual(case: Case, isa: str) -> None:
    tensors = case.tensors()
    assert same_bits(computed(case, tensors, 2, in_place=True)[0], computed(case, tensors)[0])


def test_silu_of_extreme_values(isa: str) -> None:
    values = torch.tensor([0.0, -0.0, 1e-30, 30, -30, 87, -87, 100, -100, 3e38, -3e38])
    values = torch.cat([values, torch.tensor([float("inf"), float("nan")])]).reshape(1, 1, 1, -1)
    case = Case("extreme", tuple(values.shape), activation="silu")
    y, _ = computed(case, {"x": values})
    exact = torch.nn.functional.silu(values.double())
    torch.testing.assert_close(y.double(), exact, rtol=4e-7, atol=1e-35, equal_nan=True)


def test_silu_is_exact_to_some_units_in_the_last_place(isa: str) -> None:
    values = torch.linspace(-80, 20, 200_000)
    case = Case("many", (1, 1, 200, 1000), activation="silu")
    y, _ = computed(case, {"x": values.view(case.shape)})
    exact = torch.nn.functional.silu(values.double())
    off = ((y.double().flatten() - exact) / exact).abs()
    assert off[values >= -20].max() < 3e-7
    assert off.max() < 6e-7
