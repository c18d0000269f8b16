"""Bars that the machine code of every kernel must clear, for sm_80, sm_90 and sm_100.

No GPU is needed: the code is compiled offline, read, and executed in numpy (tests/ptx).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from ptx import SMS, Figures, compile_all, figures
from ptx.calls import CALLS, Call, Work

MOST_REGISTERS = 128  # two programs of 8 warps fill a multiprocessor's 65,536
MOST_SHARED = 48 * 1024
MOST_SPECIAL = 2.0  # an exponential and a reciprocal for each SiLU


@pytest.fixture(scope="module")
def work() -> Iterator[dict[str, Work]]:
    """Every call's launches, compiled side by side."""
    recorded = {call.name: call.launches() for call in CALLS}
    compile_all([launch for launches, _ in recorded.values() for launch in launches])
    yield recorded


@pytest.fixture(params=[(call, sm) for call in CALLS for sm in SMS], ids=lambda p: f"{p[0].name} {p[1]}")
def measured(request, work) -> tuple[Call, list[Figures], Work]:
    call, sm = request.param
    launches, done = work[call.name]
    return call, figures(launches, sm, done.elements, call.in_place), done


def test_bars(measured: tuple[Call, list[Figures], Work]) -> None:
    call, kernels, done = measured
    for kernel in kernels:
        assert kernel.stack == 0
        assert kernel.spills == 0
