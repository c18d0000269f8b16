"""The program and its threads: what it refuses, steps in a row, forks, the caller's arithmetic."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cpu_instructions import (
    Map,
    as_buffer,
    as_map,
    empty_map,
    from_map,
    instruction_array,
    reads,
    row,
    run,
    writes,
)
from op_backends import LIBRARY, needs_library, same_bits

from fastddpm.ops.program_abi import Arguments, Instruction, Op, Pointwise, Resample

pytestmark = needs_library
TESTS = Path(__file__).parent


def resampled(x: Map, y: Map, resample: Resample, **adds: object) -> Pointwise:
    return Pointwise(reads(x), writes(y, **adds), *y.shape, resample)  # type: ignore[arg-type]


def test_instructions_and_steps_follow_one_another() -> None:
    """Each instruction reads what other members wrote, and each step what the one before left."""
    steps, channels = 200, 24
    start = torch.randn(2, channels, 8, 8)
    rows = as_buffer(torch.randn(steps, channels))
    results = []
    for threads in (1, 2, 3):
        x = as_map(start)
        small, wide = empty_map(2, channels, 4, 4), empty_map(2, channels, 8, 8)
        each = row(rows, 0, channels)
        code = [
            resampled(x, small, Resample.HALVE, row=each),
            resampled(small, wide, Resample.DOUBLE, residual=x, divisor=2.0),
            resampled(wide, x, Resample.NONE),
        ]
        run(*code, threads=threads, step=steps - 1, steps=steps)
        results.append(from_map(x))
    expected = start
    for step in range(steps - 1, -1, -1):
        half = torch.nn.functional.avg_pool2d(expected, 2)
        half = half + rows.numbers[step * channels : (step + 1) * channels, None, None]
        expected = (half.repeat_interleave(2, 2).repeat_interleave(2, 3) + expected) / 2
    torch.testing.assert_close(results[0], expected, rtol=1e-5, atol=1e-5)
    assert same_bits(results[1], results[0]) and same_bits(results[2], results[0])


def created(code: list[Arguments] | list[Instruction], count: int, threads: int) -> int:
    """The status of a program that cannot be made."""
    assert LIBRARY.handle is not None
    status = ctypes.c_int32(-1)
    made = code if isinstance(code, ctypes.Array) else instruction_array(code)
    program = LIBRARY.handle.fastddpm_program_create(made, count, threads, ctypes.byref(status))
    assert program is None
    return status.value


def test_mistakes_are_refused() -> None:
    x = as_map(torch.randn(1, 3, 2, 2))
    copy = resampled(x, empty_map(1, 3, 2, 2), Resample.NONE)
    assert created([copy], 0, 1) == 1
    assert created([copy], 1, 0) == 1
    assert created((Instruction * 1)(Instruction(len(Op), ctypes.addressof(copy))), 1, 1) == 1
    assert created((Instruction * 1)(Instruction(Op.POINTWISE, None)), 1, 1) == 1


@pytest.mark.parametrize("threads", [1, 3])
def test_the_callers_arithmetic_does_not_matter(threads: int, isa: str) -> None:
    x = as_map(torch.full((4, 16, 8, 8), 1e-40))
    y = empty_map(4, 16, 8, 8)
    if not torch.set_flush_denormal(True):
        pytest.skip("no such mode")
    try:
        run(resampled(x, y, Resample.NONE, residual=x), threads=threads)
        assert torch.tensor([1e-40]).mul(1.5).item() == 0, "the caller's mode is left alone"
    finally:
        torch.set_flush_denormal(False)
    assert same_bits(from_map(y), torch.full((4, 16, 8, 8), 1e-40) * 2)


PREPARE = """
import ctypes, os, resource, signal, torch
from cpu_instructions import LIBRARY, as_map, empty_map, from_map, instruction_array
from test_cpu_team import Resample, resampled
x, y = as_map(torch.randn(2, 16, 8, 8)), empty_map(2, 16, 8, 8)
code, status, index = [resampled(x, y, Resample.NONE)], ctypes.c_int32(), ctypes.c_int64(5)
handle = LIBRARY.handle

def create(threads):
    made = instruction_array(code)
    return handle.fastddpm_program_create(made, 1, threads, ctypes.byref(status))
"""


def succeeds(code: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", PREPARE + code]
    done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_a_forked_child_has_threads_of_its_own() -> None:
    succeeds("""
program = create(3)
def replays():
    y.pixels.zero_()
    taken = handle.fastddpm_program_run(program, ctypes.byref(index), 2, 1e9)
    return taken == 2 and torch.equal(from_map(x), from_map(y))
assert replays()
child = os.fork()
if child == 0:
    signal.alarm(60)
    fine = replays() and replays()
    handle.fastddpm_program_destroy(program)
    os._exit(0 if fine else 1)
assert os.waitpid(child, 0)[1] == 0
# A child that never runs it may destroy it, too.
child = os.fork()
if child == 0:
    signal.alarm(60)
    handle.fastddpm_program_destroy(program)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert replays()
handle.fastddpm_program_destroy(program)
""")


def test_too_few_threads_are_an_error() -> None:
    succeeds("""
with open("/proc/self/statm") as sizes:
    pages = int(sizes.read().split()[0])
limit = pages * os.sysconf("SC_PAGE_SIZE") + (100 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
signal.alarm(60)
assert create(200) is None and status.value == 4
program = create(2)
assert program is not None and status.value == 0
handle.fastddpm_program_destroy(program)
""")
