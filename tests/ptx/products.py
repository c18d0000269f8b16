"""mma: products of small matrices that a warp's lanes hold together, in tensor cores.

    D = A B + C        A [16, 16] and B [16, 8] of bf16 or f16, C and D [16, 8] of f32

Lane 4 g + t holds, two numbers a register (PTX ISA, "Matrix fragments for mma.m16n8k16"):

    A  rows g, g + 8, g, g + 8; columns 2 t and the next, in the last two registers + 8
    B  column g; rows 2 t and the next, in the second register + 8
    C  and D, a number a register: row g and then g + 8, columns 2 t and the next

The machine's order of summation and the roundings within are not specified. Here they are
d = ((c + a[0] b[0]) + a[1] b[1]) + ..., each sum rounded to nearest in float32, in which a product
of two halves is exact (but for bf16 beyond float32's range). Compare results within a bound.
"""

from __future__ import annotations

import numpy as np

from .form import Form
from .machine import Machine
from .moves import Effect
from .program import Operand, Vector
from .scalars import Array, decode

ROWS, COLUMNS, DEPTH = 16, 8, 16


def multiply(form: Form) -> Effect:
    """mma.sync.aligned.m16n8k16.row.col.f32.{bf16.bf16, f16.f16}.f32 d, a, b, c."""
    form.kind("f32")
    kind = form.kind("bf16", "f16")
    form.kind(kind)
    form.kind("f32")
    for modifier in ("sync", "aligned", "m16n8k16", "row", "col"):
        form.one_of(modifier)
    form.done(operands=4)
    d, a, b, c = (
        _registers(form, operand, count)
        for operand, count in zip(form.instruction.operands, (4, 4, 2, 4), strict=True)
    )

    def execute(machine: Machine) -> None:
        machine.whole_warps()
        start = np.stack([machine.bits(register, 32) for register in c], axis=1).view(np.float32)
        left, right = _left(_halves(machine, a, kind)), _right(_halves(machine, b, kind))
        total = _of_lanes(sum_of_products(left, right, _of_warps(start)))
        for i, register in enumerate(d):
            machine.write(register, total[:, i].copy().view(np.uint32), "f32")

    return execute


def _registers(form: Form, operand: Operand, count: int) -> tuple[Operand, ...]:
    if not isinstance(operand, Vector) or len(operand.items) != count:
        raise form.unsupported(f"expected {count} registers")
    return operand.items


def _halves(machine: Machine, registers: tuple[Operand, ...], kind: str) -> Array:
    """The numbers of each lane, two a register: [lanes, 2 registers] float32, which holds them."""
    bits = np.stack([machine.bits(register, 32) for register in registers], axis=1)
    return decode(bits.view(np.uint16), kind).astype(np.float32)


# What lanes hold, as [warps, g, t, ...], and the matrices of their warps: axes of two are whether 8
# is added to a row (lower) or column (right), and which of a pair of numbers.


def _left(numbers: Array) -> Array:
    """A, [warps, 16, 16]."""
    parts = numbers.reshape(-1, 8, 4, 2, 2, 2)  # right, lower, pair
    return parts.transpose(0, 4, 1, 3, 2, 5).reshape(-1, ROWS, DEPTH)


def _right(numbers: Array) -> Array:
    """B, [warps, 16, 8]."""
    parts = numbers.reshape(-1, 8, 4, 2, 2)  # lower, pair
    return parts.transpose(0, 3, 2, 4, 1).reshape(-1, DEPTH, COLUMNS)


def _of_warps(numbers: Array) -> Array:
    """C, [warps, 16, 8]."""
    parts = numbers.reshape(-1, 8, 4, 2, 2)  # lower, pair
    return parts.transpose(0, 3, 1, 2, 4).reshape(-1, ROWS, COLUMNS)


def _of_lanes(matrix: Array) -> Array:
    """D as its lanes hold it, [lanes, 4]."""
    parts = matrix.reshape(-1, 2, 8, 4, 2)  # lower, g, t, pair
    return parts.transpose(0, 2, 3, 1, 4).reshape(-1, 4)


def sum_of_products(a: Array, b: Array, c: Array) -> Array:
    """c + a b, [warps, rows, columns], in the order that the file's head states."""
    total: Array = c
    for k in range(DEPTH):
        total = total + a[:, :, k, None] * b[:, k, None, :]
    return total
