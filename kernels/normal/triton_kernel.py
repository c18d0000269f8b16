"""Standard normal noise on a GPU. Specification: fastddpm/noise.py, agreed with bit for bit."""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from fastddpm.kernels.common.launch import Launch
from fastddpm.kernels.common.philox import normals, stream
from fastddpm.kernels.common.runs import tile_of

# Counters, of four normals each, a program: two for each of 128 threads, which share the cost of a
# thread's start, and three programs for a CIFAR-10 sample.
COUNTERS = 256
# Offsets inside a sample are int32.
MAX_ELEMENTS = 1 << 30


@triton.jit
def normal_kernel(
    out_pointer,  # float32 [B, ELEMENTS]
    seed_pointer,  # int64 [1]
    indices_pointer,  # int64 [B]
    steps_pointer,  # int64 [1] or [B]
    ELEMENTS: tl.constexpr,
    STEP_STRIDE: tl.constexpr,
    PURPOSE: tl.constexpr,
    COUNTERS: tl.constexpr,
):
    PROGRAMS: tl.constexpr = (ELEMENTS + 4 * COUNTERS - 1) // (4 * COUNTERS)
    sample = (tl.program_id(0) // PROGRAMS).to(tl.int64)
    counters = tl.program_id(0) % PROGRAMS * COUNTERS + tl.arange(0, COUNTERS)
    elements = 4 * counters[:, None] + tl.arange(0, 4)[None, :]

    step, index = tl.load(steps_pointer + sample * STEP_STRIDE), tl.load(indices_pointer + sample)
    key, counter = stream(tl.load(seed_pointer), index, step, PURPOSE)
    z = tile_of(normals(counters.to(tl.uint32), key, counter), 0, 4)
    tl.store(out_pointer + sample * ELEMENTS + elements, z, mask=elements < ELEMENTS)


def launch(out: Tensor, seed: Tensor, indices: Tensor, steps: Tensor, purpose: int) -> Launch:
    """Fill out, float32 [B, *shape]; the others are the arguments of fastddpm::normal."""
    elements = math.prod(out.shape[1:])
    return Launch(
        normal_kernel,
        grid=(len(out) * -(-elements // (4 * COUNTERS)),),
        arguments={
            "out_pointer": out,
            "seed_pointer": seed,
            "indices_pointer": indices,
            "steps_pointer": steps,
        },
        constants={
            "ELEMENTS": elements,
            "STEP_STRIDE": int(len(steps) > 1),
            "PURPOSE": purpose,
            "COUNTERS": COUNTERS,
        },
        num_warps=4,
        exact=True,
        writes=("out_pointer",),
    )


def unsupported(shape: tuple[int, ...]) -> list[str]:
    """Why the kernel cannot draw samples of this shape; empty if it can."""
    if math.prod(shape) > MAX_ELEMENTS:
        return [f"a sample has more than {MAX_ELEMENTS} elements"]
    return []
