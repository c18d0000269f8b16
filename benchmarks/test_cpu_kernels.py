"""Each instruction of the CPU program at the network's own layers, beside torch's own operations.

Run: pytest benchmarks/test_cpu_kernels.py --benchmark-enable --benchmark-group-by=param:name
A group is one layer; extra_info has bytes, FLOP, and both a second. THREADS, BATCH in the
environment choose how many; nothing is timed before it agrees with float64.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from benchmarks.cpu import calls, instructions

THREADS = int(os.environ.get("THREADS", torch.get_num_threads()))
BATCH = int(os.environ.get("BATCH", "1"))
MEASURED = {one.name: one for one in instructions.measured(BATCH)}
# Of an output against float64; what is exact enough is the tests' affair.
TOLERANCE = 1e-5


@pytest.mark.parametrize("library", ["fastddpm", "torch"])
@pytest.mark.parametrize("name", MEASURED)
@torch.inference_mode()
def test_kernel(name: str, library: str, benchmark: Any) -> None:
    one = MEASURED[name]
    torch.set_num_threads(THREADS)
    call = one.torchs if library == "torch" else one.program(THREADS)
    found = call()
    output = one.output() if library == "fastddpm" else found
    assert calls.agreement(output, one.exact().reshape(output.shape)) < TOLERANCE
    benchmark(call)
    benchmark.extra_info |= {"threads": THREADS, "batch": BATCH}
    benchmark.extra_info |= {"bytes": one.bytes, "executed_flop": one.flop}
    if benchmark.stats is not None:
        seconds = benchmark.stats.stats.median
        rates = {"bytes_per_second": one.bytes / seconds, "flop_per_second": one.flop / seconds}
        benchmark.extra_info |= rates
