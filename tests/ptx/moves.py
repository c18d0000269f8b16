"""mov, selp, setp: registers copied, packed, unpacked, chosen and compared."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .form import Form
from .machine import Machine
from .operation import Operation
from .program import Register, Vector
from .scalars import FLOATS, UNSIGNED, Array, decode, flush, width

Effect = Callable[[Machine], None]

ORDERED: dict[str, Callable[[Array, Array], Array]] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
# The names for unsigned integers.
UNSIGNED_NAMES = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
COMBINE: dict[str, Callable[[Array, Array], Array]] = {
    "and": np.logical_and,
    "or": np.logical_or,
    "xor": np.logical_xor,
}


def move(form: Form) -> Operation | Effect:
    """mov, also between a vector of narrow registers and a wide one."""
    kind = form.kind()
    form.done(operands=2)
    target, source = form.instruction.operands
    if isinstance(target, Vector):
        return _unpack(target, kind)
    if isinstance(source, Vector):
        return _pack(source, kind)
    return Operation(kind, (kind,), lambda bits: bits)


def _pack(source: Vector, kind: str) -> Effect:
    part = width(kind) // len(source.items)

    def execute(machine: Machine) -> None:
        parts = [machine.bits(item, part) for item in source.items]
        whole = np.stack(parts, axis=1).view(UNSIGNED[width(kind)])[:, 0]
        machine.write(machine.instruction.operands[0], whole, kind)

    return execute


def _unpack(target: Vector, kind: str) -> Effect:
    part = width(kind) // len(target.items)

    def execute(machine: Machine) -> None:
        whole = np.ascontiguousarray(machine.bits(machine.instruction.operands[1], width(kind)))
        parts = whole.view(UNSIGNED[part]).reshape(machine.lanes, -1)
        for i, item in enumerate(target.items):
            machine.write(item, parts[:, i].copy(), f"b{part}")

    return execute


def select(form: Form) -> Operation:
    """selp d, a, b, p: a where p."""
    kind = form.kind()
    form.done(operands=4)
    return Operation(kind, (kind, kind, "pred"), lambda a, b, p: np.where(p, a, b))


def compare(form: Form) -> Operation | Effect:
    """setp.<comparison>{.and|.or|.xor} p{|q}, a, b{, c}: q is the opposite comparison."""
    kind = form.kind()
    ftz = form.flag("ftz")
    combine = form.one_of(*COMBINE, default="none")
    function = _comparison(form, kind)
    form.done(operands=3 if combine == "none" else 4)
    operands = form.instruction.operands
    target = operands[0]

    def execute(machine: Machine) -> None:
        a, b = (decode(machine.bits(operand, width(kind)), kind) for operand in operands[1:3])
        holds = function(flush(a), flush(b)) if ftz else function(a, b)
        pair = [holds, ~holds]
        if combine != "none":
            pair = [COMBINE[combine](p, machine.bits(operands[3], 1)) for p in pair]
        machine.write(target, pair[0], "pred")
        if isinstance(target, Register) and target.other:
            machine.write(Register(target.other), pair[1], "pred")

    return execute


def _comparison(form: Form, kind: str) -> Callable[[Array, Array], Array]:
    if kind in FLOATS:
        name = form.one_of(*ORDERED, *(f"{name}u" for name in ORDERED), "num", "nan")
        if name in ORDERED:
            # The ordered comparisons are false of NaN; numpy's != is true.
            plain = ORDERED[name]
            return lambda a, b: plain(a, b) & ~(np.isnan(a) | np.isnan(b))
        if name in ("num", "nan"):
            return lambda a, b: (np.isnan(a) | np.isnan(b)) == (name == "nan")
        plain = ORDERED[name[:-1]]
        return lambda a, b: plain(a, b) | np.isnan(a) | np.isnan(b)
    name = form.one_of(*ORDERED, *UNSIGNED_NAMES)
    if kind[0] == "b" and name not in ("eq", "ne"):
        raise form.unsupported("an order of untyped bits")
    return ORDERED[UNSIGNED_NAMES.get(name, name)]
