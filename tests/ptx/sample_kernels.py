"""Small Triton kernels that exercise the executor: one idea of code generation each."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def add_vectors(x, y, out, n, BLOCK: tl.constexpr):
    """out = x + y: masked, vectorised, one dimension."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = index < n
    total = tl.load(x + index, mask).to(tl.float32) + tl.load(y + index, mask).to(tl.float32)
    tl.store(out + index, total.to(out.dtype.element_ty), mask)


@triton.jit
def softmax_rows(x, out, columns, BLOCK: tl.constexpr):
    """out = softmax(x, dim=1): reductions across warps through shared memory."""
    row = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, BLOCK)
    mask = index < columns
    value = tl.load(x + row * columns + index, mask, other=-float("inf")).to(tl.float32)
    power = tl.exp(value - tl.max(value, 0))
    tl.store(out + row * columns + index, power / tl.sum(power, 0), mask)


@triton.jit
def sum_columns(x, out, rows, columns, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """out = x.sum(0): a loop, shuffles and one reduction at its end."""
    column = tl.program_id(0).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for start in range(0, rows, BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)
        inside = (row < rows)[:, None] & (column < columns)[None, :]
        total += tl.load(x + row[:, None] * columns + column[None, :], inside, other=0.0)
    tl.store(out + column, tl.sum(total, 0), column < columns)


@triton.jit
def transpose(x, out, rows, columns, BLOCK: tl.constexpr):
    """out = x.T: a layout conversion through shared memory (stmatrix on sm_90 and later)."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    column = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    tile = tl.load(x + row[:, None] * columns + column[None, :], inside)
    flipped = tl.trans(tile)
    inside = (column < columns)[:, None] & (row < rows)[None, :]
    tl.store(out + column[:, None] * rows + row[None, :], flipped, inside)


@triton.jit
def count_positive(x, count, largest, n, BLOCK: tl.constexpr):
    """count += number of x > 0, largest = the last such index: atomics from many programs."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    positive = (tl.load(x + index, index < n, other=0.0) > 0).to(tl.int32)
    tl.atomic_add(count, tl.sum(positive, 0))
    tl.atomic_max(largest, tl.max(index * positive, 0).to(tl.int64))


@triton.jit
def double_narrow(x, out, n, BLOCK: tl.constexpr):
    """out = 2 x with offsets of 32 bits: wrong from 2^31 elements on."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + index, 2 * tl.load(x + index, index < n), index < n)
