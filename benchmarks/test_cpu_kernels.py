"""Each instruction of the CPU program at the network's own layers, beside torch's own operations.

Nothing is timed before it agrees with float64; extra_info has bytes, FLOP, and both a second.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks.conftest import Compare
from benchmarks.cpu import calls, instructions
from benchmarks.side_by_side import OURS, timed

BATCH = 1
MEASURED = {one.name: one for one in instructions.measured(BATCH)}
# Of an output against float64; what is exact enough is the tests' affair.
TOLERANCE = 1e-5


@pytest.mark.parametrize("name", MEASURED)
@torch.inference_mode()
def test_kernel(name: str, compare: Compare, threads: int) -> None:
    one = MEASURED[name]
    call = one.program(threads)
    call()
    exact = one.exact()
    for output in (one.output(), one.torchs()):
        assert calls.agreement(output.reshape(exact.shape), exact) < TOLERANCE
    turns = {OURS: timed(call), "torch": timed(one.torchs)}
    compare("Layers", name, turns, batch=BATCH, bytes=one.bytes, executed_flop=one.flop)
