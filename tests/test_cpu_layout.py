"""The layout instruction on the CPU, bit for bit with torch on every case."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cpu_instructions import as_buffer, as_map, empty_map, from_map, run
from op_backends import needs_library, same_bits
from torch import Tensor

from fastddpm.kernels.layout import reference
from fastddpm.kernels.layout.cases import CASES, Case
from fastddpm.ops.program_abi import Layout, Row

pytestmark = needs_library
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_team = pytest.mark.parametrize("threads", [1, 2, 3, 40])
DIVISORS = torch.tensor([[3.0, 0.7, 1.9], [0.3, 1.7, 5.0], [2.5, 0.1, 0.9]])  # [steps, samples]
STEP = 1


def planes_of(case: Case) -> Tensor:
    generator = torch.Generator().manual_seed(case.pixels)
    shape = (case.batch, case.channels, case.pixels)
    return torch.randn(shape, generator=generator, dtype=torch.float32)


def settings(case: Case) -> dict[str, Any]:
    of_samples = DIVISORS[STEP, : case.batch, None, None]
    divisors = {None: 1.0, "step": float(DIVISORS[STEP, 0]), "sample": of_samples}
    return {"factor": case.factor, "offset": case.offset, "divisor": divisors[case.divided]}


def convert(case: Case, to: int, given: int, stride: int, into_map: bool, threads: int) -> None:
    divisors = as_buffer(DIVISORS)
    sizes = (stride, case.batch, case.channels, case.pixels, int(into_map))
    row = Row(divisors.address, int(case.divided == "sample"), DIVISORS.shape[1])
    factors = (case.factor, case.offset, row if case.divided else Row())
    run(Layout(to, given, *sizes, *factors), threads=threads, step=STEP)


@every_team
@every_case
def test_into_a_map(case: Case, threads: int, isa: str) -> None:
    planes = planes_of(case)
    given, to = as_buffer(planes), empty_map(case.batch, case.channels, case.pixels)
    convert(case, to.address, given.address, to.stride, True, threads)
    assert same_bits(from_map(to), reference.into_map(planes, **settings(case)).contiguous())


@every_team
@every_case
def test_from_a_map(case: Case, threads: int, isa: str) -> None:
    pixels = planes_of(case).transpose(1, 2)
    given, to = as_map(pixels), as_buffer(torch.full(pixels.shape, torch.nan))
    convert(case, to.address, given.address, given.stride, False, threads)
    to.check_border()
    expected = reference.from_map(pixels, **settings(case))
    assert same_bits(to.numbers.reshape(expected.shape), expected.contiguous())
