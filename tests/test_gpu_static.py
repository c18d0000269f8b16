"""Bars that the machine code of every kernel must clear, for sm_80, sm_90 and sm_100.

No GPU is needed: the code is compiled offline, read, and executed in numpy (tests/ptx).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from ptx import SMS, Figures, compile_all, figures, resources
from ptx.calls import CALLS, Call, Work

from fastddpm.kernels.common.launch import Launch

# At 128 registers two programs of 8 warps fill a multiprocessor's 65,536.
MOST_REGISTERS = 128
MOST_SHARED = 48 * 1024
# An exponential and a reciprocal for each SiLU. A group's reciprocal square root is a few
# hundredths an element, hence the rounding to tenths below.
MOST_SPECIAL = 2.0
WIDEST = (128,)
# Times the bytes of a kernel's tensors, for each kernel of a call; `Call.ratio` is of a whole call.
MOST_TRAFFIC = 1.05


@pytest.fixture(scope="module")
def work() -> Iterator[dict[str, tuple[list[Launch], Work]]]:
    """Every call's launches, compiled side by side."""
    made = {call.name: call.launches() for call in CALLS}
    compile_all([launch for launches, _ in made.values() for launch in launches])
    yield made


def broken_bars(call: Call, kernels: list[Figures], work: Work) -> list[str]:
    """What is wrong with a call's kernels, in words."""
    broken = []
    for kernel in kernels:
        limits = {
            "stack bytes": (kernel.stack, 0),
            "local loads and stores": (kernel.spills, 0),
            "registers": (kernel.registers, MOST_REGISTERS),
            "shared bytes": (kernel.shared, MOST_SHARED),
            "special functions an element": (round(kernel.special, 1), MOST_SPECIAL),
            "instructions an element": (
                round(kernel.instructions, 1),
                call.instructions.get(kernel.kernel, float("inf")),
            ),
        }
        broken += [
            f"{kernel.kernel}: {value} {name}, at most {limit} expected"
            for name, (value, limit) in limits.items()
            if value > limit
        ]
        if len(kernels) > 1 and kernel.bytes_moved > MOST_TRAFFIC * kernel.least_bytes:
            broken.append(f"{kernel.kernel}: {kernel.bytes_moved} bytes for {kernel.least_bytes}")
        for way, bits in (("loads", kernel.load_bits), ("stores", kernel.store_bits)):
            if bits not in ((), WIDEST):
                broken.append(f"{kernel.kernel}: bulk {way} of {bits} bits")
    moved = sum(kernel.bytes_moved for kernel in kernels) / work.least_bytes
    if round(moved, 2) > call.ratio:
        broken.append(f"{moved:.3f} times the least bytes, at most {call.ratio:.3f} expected")
    return broken


@pytest.mark.parametrize("sm", SMS)
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_bars(call: Call, sm: int, work: dict[str, tuple[list[Launch], Work]]) -> None:
    launches, done = work[call.name]
    kernels = figures(launches, sm, done.elements, call.in_place)
    assert launches and not broken_bars(call, kernels, done)


@pytest.mark.parametrize("sm", SMS)
@pytest.mark.parametrize("call", [c for c in CALLS if c.exact], ids=lambda call: call.name)
def test_exact_kernels_round_every_product(
    call: Call, sm: int, work: dict[str, tuple[list[Launch], Work]]
) -> None:
    launches, done = work[call.name]
    for launch, code in zip(launches, compile_all(launches, [sm]), strict=True):
        assert "mul.rn.f32" in code.ptx
        found = re.findall(r"\b(?:fma|mad)\.\S*f32(x2)?", code.ptx)
        threads = math.prod(launch.grid) * 32 * code.num_warps
        assert sum(2 if x2 else 1 for x2 in found) * threads == call.fused * done.elements


@pytest.mark.parametrize("sm", SMS)
def test_the_assembler_keeps_the_widths_of_the_ptx(
    sm: int, work: dict[str, tuple[list[Launch], Work]]
) -> None:
    """The widths above are of the executed PTX: the machine code has as many of the widest.

    Of the others it may have fewer: it joins equal loads, and reads half of a number whose other
    half is not used.
    """
    for launches, _ in work.values():
        for code in compile_all(launches, [sm]):
            read = resources(code)
            if read.loops:  # unrolled or not, as the assembler likes
                continue
            for name, found in (("ld", read.loads), ("st", read.stores)):
                accesses = re.findall(rf"\b{name}\.global\S*?(\.v\d)?\.b(\d+)\b", code.ptx)
                widths = Counter(int(bits) * int(v[2:] or 1) for v, bits in accesses)
                assert found[128] == widths[128], code.name
                assert found.total() <= widths.total() and max(found, default=0) <= 128


def test_the_bars_can_be_broken() -> None:
    kernel = Figures(
        *("bad", 90, 8, 129, 8, 2, 1 << 16, (32, 128), (64,), 2.1, 18.0, 200, 150), code=None
    )
    call = Call("bad", lambda: Work(1, []), {"bad": 17.0})
    broken = broken_bars(call, [kernel], Work(1, [torch.zeros(40)]))
    assert len(broken) == 9
    assert len(broken_bars(call, [kernel, kernel], Work(1, [torch.zeros(40)]))) == 2 * 9 + 1
