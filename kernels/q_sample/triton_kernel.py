"""The forward process on a GPU, its noise drawn on the way and kept for the loss.

Specification: reference.py with the noise of fastddpm/noise.py, agreed with bit for bit. Seed,
sample indices, step words and t are read from device memory.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from fastddpm.kernels.common.launch import Launch
from fastddpm.kernels.common.philox import normals, stream
from fastddpm.kernels.common.runs import tile_of

FORWARD = tl.constexpr(2)  # Purpose.FORWARD of fastddpm/noise.py
# Counters, of four elements each, a program: two for each of 128 threads, which share the cost of a
# thread's start, and three programs for a CIFAR-10 sample.
COUNTERS = 256
# Offsets inside a sample are int32.
MAX_ELEMENTS = 1 << 30


@triton.jit
def q_sample_kernel(
    x_t_pointer,  # float32 [B, ELEMENTS]
    noise_pointer,  # float32 [B, ELEMENTS]
    x_0_pointer,  # float32 [B, ELEMENTS]
    t_pointer,  # int64 [B]
    table_pointer,  # float32 [T, 2]
    seed_pointer,  # int64 [1]
    indices_pointer,  # int64 [B]
    steps_pointer,  # int64 [1] or [B]
    ELEMENTS: tl.constexpr,
    STEP_STRIDE: tl.constexpr,
    COUNTERS: tl.constexpr,
):
    PROGRAMS: tl.constexpr = (ELEMENTS + 4 * COUNTERS - 1) // (4 * COUNTERS)
    sample = (tl.program_id(0) // PROGRAMS).to(tl.int64)
    counters = tl.program_id(0) % PROGRAMS * COUNTERS + tl.arange(0, COUNTERS)
    elements = 4 * counters[:, None] + tl.arange(0, 4)[None, :]
    inside = elements < ELEMENTS

    x_0 = tl.load(x_0_pointer + sample * ELEMENTS + elements, mask=inside)
    row_pointer = table_pointer + 2 * tl.load(t_pointer + sample)
    signal, spread = tl.load(row_pointer), tl.load(row_pointer + 1)
    step, index = tl.load(steps_pointer + sample * STEP_STRIDE), tl.load(indices_pointer + sample)
    key, counter = stream(tl.load(seed_pointer), index, step, FORWARD)
    z = tile_of(normals(counters.to(tl.uint32), key, counter), 0, 4)
    tl.store(noise_pointer + sample * ELEMENTS + elements, z, mask=inside)
    tl.store(x_t_pointer + sample * ELEMENTS + elements, signal * x_0 + spread * z, mask=inside)


def launch(
    x_t: Tensor,
    noise: Tensor,
    x_0: Tensor,
    t: Tensor,
    table: Tensor,
    seed: Tensor,
    indices: Tensor,
    steps: Tensor,
) -> Launch:
    """Fill x_t and noise; the others are the arguments of fastddpm::q_sample. All contiguous."""
    elements = math.prod(x_0.shape[1:])
    return Launch(
        q_sample_kernel,
        grid=(len(x_0) * -(-elements // (4 * COUNTERS)),),
        arguments={
            "x_t_pointer": x_t,
            "noise_pointer": noise,
            "x_0_pointer": x_0,
            "t_pointer": t,
            "table_pointer": table,
            "seed_pointer": seed,
            "indices_pointer": indices,
            "steps_pointer": steps,
        },
        constants={
            "ELEMENTS": elements,
            "STEP_STRIDE": int(len(steps) > 1),
            "COUNTERS": COUNTERS,
        },
        num_warps=4,
        exact=True,
        writes=("x_t_pointer", "noise_pointer"),
    )


def unsupported(x_0: Tensor) -> list[str]:
    """Why the kernel cannot take these images; empty if it can."""
    if math.prod(x_0.shape[1:]) > MAX_ELEMENTS:
        return [f"a sample has more than {MAX_ELEMENTS} elements"]
    return []
