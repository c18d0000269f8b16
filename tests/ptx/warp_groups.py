"""wgmma: products by four warps together, of matrices in shared memory, which go on by themselves.

    D += A B           A [64, 16] and B [16, N] of bf16 or f16, D [64, N] of f32

Both factors lie in shared memory, each row of A and each column of B in 32 bytes of one row of a
swizzled tile (a descriptor's "K-major" layouts; the others are not known). Lane 4 g + t of warp w
holds D's rows 16 w + g and then + 8, columns 8 j + 2 t and the next, j by j. Summed as in
products.py. accumulators.py says what is a fault between a product and its wait. The factors must
have been written before the last barrier, and a fence.proxy.async be executed after it.
"""

from __future__ import annotations

import numpy as np

from .accumulators import Loan
from .cells import NOBODY
from .faults import Unsupported
from .form import Form
from .machine import POISON, Machine
from .moves import Effect
from .products import sum_of_products
from .program import Immediate, Operand, Register, Vector
from .scalars import Array, decode

GROUP, ROWS, DEPTH = 128, 64, 16
# Bytes of a swizzled tile's rows by the descriptor's two highest bits.
SWIZZLES = {1: 128, 2: 64, 3: 32}


def instruction(form: Form) -> Effect:
    """wgmma.{fence, commit_group, wait_group n, mma_async}.sync.aligned."""
    form.one_of("sync")
    form.one_of("aligned")
    name = form.one_of("fence", "commit_group", "wait_group", "mma_async")
    if name == "mma_async":
        return _product(form)
    form.done(operands=1 if name == "wait_group" else 0)
    return {"fence": _fence, "commit_group": _commit, "wait_group": _wait}[name]


def _fence(machine: Machine) -> None:
    _groups(machine)
    machine.accumulators.fence(machine.active)


def _commit(machine: Machine) -> None:
    _groups(machine)
    machine.accumulators.committed += machine.active


def _wait(machine: Machine) -> None:
    _groups(machine)
    (left,) = machine.instruction.operands
    end = machine.accumulators.committed - machine.bits(left, 32)

    def ready(loan: Loan) -> Array:
        done: Array = machine.active[loan.lane] & (loan.group < end[loan.lane])
        return done

    machine.accumulators.land(lambda group: machine.active & (group < end))
    machine.shared.loans.land(ready, lambda loan: machine.requests(loan.address, loan.lane))


def _groups(machine: Machine) -> Array:
    """The warp groups that execute this: all of their lanes must."""
    if machine.program.block % GROUP:
        raise Unsupported(f"a part of a warp group: {machine.text}")
    whole = machine.active.reshape(-1, GROUP).all(axis=1)
    machine.refuse(np.repeat(~whole, GROUP), "only some lanes of a warp group are here")
    return np.flatnonzero(whole)


def _product(form: Form) -> Effect:
    """wgmma.mma_async.sync.aligned.m64nNk16.f32.<type>.<type> d, a, b, scale-d, 1, 1, 0, 0."""
    kind = form.kind("bf16", "f16")
    form.kind(kind)
    form.kind("f32")
    columns = int(form.one_of(*(f"m64n{n}k16" for n in range(8, 257, 8)))[4:-3])
    form.done(operands=8)
    d, a, b, keep, *flags = form.instruction.operands
    if flags != [Immediate(bits) for bits in (1, 1, 0, 0)]:
        raise form.unsupported("signs and transpositions")
    if not isinstance(d, Vector) or len(d.items) != columns // 2:
        raise form.unsupported(f"expected {columns // 2} registers")
    names = [item.name for item in d.items if isinstance(item, Register)]

    def execute(machine: Machine) -> None:
        groups = _groups(machine)
        _begin(machine, names)
        left, right = (_factor(machine, *pair, groups, kind) for pair in ((a, ROWS), (b, columns)))
        lanes = machine.active
        unwritten = machine.bits(Immediate(POISON), 32)
        # Past the check that no product sums into them: a product may.
        held = [machine.registers.get(name, unwritten) for name in names]
        start = np.stack([values[lanes] for values in held], axis=1).view(np.float32)
        start = np.where(machine.bits(keep, 1)[lanes, None], start, np.float32(0))
        total = _of_lanes(sum_of_products(left, right.swapaxes(1, 2), _of_groups(start)))
        for name, old, values in zip(names, held, total.T, strict=True):
            new = old.copy()
            new[lanes] = np.ascontiguousarray(values).view(np.uint32)
            machine.registers[name] = new

    return execute


def _begin(machine: Machine, names: list[str]) -> None:
    """Take the accumulators."""
    for name in names:
        accumulator = machine.accumulators.by_name[name]
        unfenced = (accumulator.group == NOBODY) & ~accumulator.fenced
        machine.refuse(unfenced, f"{name} is written with no wgmma.fence since")
        group = machine.accumulators.committed
        accumulator.group = np.where(machine.active, group, accumulator.group)


def _factor(machine: Machine, operand: Operand, rows: int, groups: Array, kind: str) -> Array:
    """The numbers [groups, rows, 16] that a descriptor describes, on loan."""
    if not isinstance(operand, Register) or machine.program.widths[operand.name] != 64:
        raise Unsupported(f"a factor in registers: {machine.text}")
    descriptors = machine.bits(operand, 64).reshape(-1, GROUP)
    machine.refuse((descriptors != descriptors[:, :1]).ravel(), "lanes give other descriptors")
    addresses = np.stack([_places(machine, int(d), rows) for d in descriptors[groups, 0]]).ravel()
    lanes = np.repeat(groups * GROUP, 2 * rows)
    who = machine.requests(addresses, lanes)
    fenced = machine.fenced.reshape(-1, GROUP).min(axis=1).repeat(GROUP)[lanes]
    group = machine.accumulators.committed[lanes]
    values = machine.shared.lend(addresses, group, fenced, who)
    return decode(values, kind).astype(np.float32).reshape(len(groups), rows, DEPTH)


def _places(machine: Machine, descriptor: int, rows: int) -> Array:
    """The addresses [rows, 2] of each row's two parts of 16 bytes."""
    start, stride = ((descriptor >> bit & 0x3FFF) << 4 for bit in (0, 32))
    pitch = SWIZZLES.get(descriptor >> 62)
    if pitch is None or descriptor >> 49 & 7:
        raise Unsupported(f"a matrix by descriptor {descriptor:#x}: {machine.text}")
    row, part = np.arange(rows)[:, None], 16 * np.arange(2)
    plain = start + row // 8 * stride + row % 8 * pitch + part
    swizzled: Array = plain ^ (plain >> 7 & (pitch // 16 - 1)) << 4
    return swizzled


def _of_groups(numbers: Array) -> Array:
    """What lanes hold, [lanes, N / 2], as matrices [groups, 64, N]."""
    parts = numbers.reshape(-1, 4, 8, 4, numbers.shape[1] // 4, 2, 2)  # w, g, t, j, lower, pair
    return parts.transpose(0, 1, 5, 2, 4, 3, 6).reshape(len(parts), ROWS, -1)


def _of_lanes(matrix: Array) -> Array:
    """The reverse."""
    parts = matrix.reshape(len(matrix), 4, 2, 8, -1, 4, 2)
    return parts.transpose(0, 1, 3, 5, 4, 2, 6).reshape(GROUP * len(matrix), -1)
