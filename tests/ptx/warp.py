"""shfl, vote, redux, match, activemask: what the lanes of a warp tell each other."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from . import floats
from .form import Form
from .machine import WARP, Machine
from .moves import Effect
from .program import Operand, Register
from .scalars import UNSIGNED, Array, decode, encode, width


def shuffle(form: Form) -> Effect:
    """shfl.sync.{up, down, bfly, idx}.b32 d{|p}, a, b, c, mask (PTX ISA, shfl.sync, pseudocode)."""
    form.kind("b32")
    form.one_of("sync")
    mode = form.one_of("up", "down", "bfly", "idx")
    form.done(operands=5)
    target, value, offset, clamp, mask = form.instruction.operands

    def execute(machine: Machine) -> None:
        _check_mask(machine, mask)
        lane = machine.thread % WARP
        b = machine.bits(offset, 32).astype(np.int64) & 31
        c = machine.bits(clamp, 32).astype(np.int64)
        segment = c >> 8 & 31
        last, first = (lane & segment) | (c & 31 & ~segment), lane & segment
        source = {"up": lane - b, "down": lane + b, "bfly": lane ^ b, "idx": first | b & ~segment}
        chosen = source[mode]
        valid = chosen >= last if mode == "up" else chosen <= last
        chosen = np.where(valid, chosen, lane)
        absolute = np.arange(machine.lanes) - lane + chosen
        machine.refuse(~machine.active[absolute], "shuffle from an inactive lane")
        machine.write(target, machine.bits(value, 32)[absolute], "b32")
        if isinstance(target, Register) and target.other:
            machine.write(Register(target.other), valid, "pred")

    return execute


REDUCTIONS: dict[str, Callable[[Array, Array], Array]] = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


def reduce(form: Form) -> Effect:
    """redux.sync.<op>.<type> d, a, mask; min and max of float32 on sm_100."""
    kind = form.kind("s32", "u32", "b32", "f32")
    form.one_of("sync")
    name = form.one_of(*REDUCTIONS)
    function = REDUCTIONS[name]
    if kind == "f32":
        numbers = {"min": floats.minimum, "max": floats.maximum}
        if form.flag("NaN"):
            numbers = {"min": floats.nan_minimum, "max": floats.nan_maximum}
        if name not in numbers:
            raise form.unsupported("a sum of float32")
        function = numbers[name]
    form.done(operands=3)
    target, value, mask = form.instruction.operands

    def execute(machine: Machine) -> None:
        _check_mask(machine, mask)
        machine.whole_warps()
        values = decode(machine.bits(value, 32), kind).reshape(-1, WARP)
        total = functools.reduce(function, values.T)
        machine.write(target, np.repeat(encode(total, kind), WARP), kind)

    return execute


def vote(form: Form) -> Effect:
    """vote.sync.{ballot.b32, all.pred, any.pred, uni.pred} d, p, mask."""
    kind = form.kind("b32", "pred")
    form.one_of("sync")
    mode = form.one_of("ballot", "all", "any", "uni")
    form.done(operands=3)
    target, value, mask = form.instruction.operands

    def execute(machine: Machine) -> None:
        _check_mask(machine, mask)
        holds = machine.bits(value, 1).reshape(-1, WARP)
        active = machine.active.reshape(-1, WARP)
        every, some = (holds | ~active).all(axis=1), (holds & active).any(axis=1)
        ballot = _mask(holds & active)
        answer = {"ballot": ballot, "all": every, "any": some, "uni": every | ~some}[mode]
        machine.write(target, np.repeat(answer, WARP), kind)

    return execute


def match(form: Form) -> Effect:
    """match.any.sync.<type> d, a, mask: the lanes that hold the same value."""
    kind = form.kind("b32", "b64")
    form.one_of("any")
    form.one_of("sync")
    form.done(operands=3)
    target, value, mask = form.instruction.operands

    def execute(machine: Machine) -> None:
        _check_mask(machine, mask)
        values = machine.bits(value, width(kind)).reshape(-1, WARP)
        active = machine.active.reshape(-1, 1, WARP)
        same = (values[:, :, None] == values[:, None, :]) & active
        machine.write(target, _mask(same).ravel(), "b32")

    return execute


def active_mask(form: Form) -> Effect:
    """activemask.b32 d."""
    form.kind("b32")
    form.done(operands=1)
    (target,) = form.instruction.operands

    def execute(machine: Machine) -> None:
        mask = _mask(machine.active.reshape(-1, WARP))
        machine.write(target, np.repeat(mask, WARP), "b32")

    return execute


def _mask(lanes: Array) -> Array:
    """Lane i's truth as bit i: [..., 32] bool to [...] uint32."""
    weights = np.uint32(1) << np.arange(WARP, dtype=np.uint32)
    total: Array = (lanes * weights).sum(axis=-1, dtype=UNSIGNED[32])
    return total


def _check_mask(machine: Machine, operand: Operand) -> None:
    """A .sync instruction must be executed by exactly the lanes that its mask names."""
    mask = machine.bits(operand, 32)
    executing = np.repeat(_mask(machine.active.reshape(-1, WARP)), WARP)
    machine.refuse(mask != executing, "the mask names other lanes than run this")
