"""bra, ret, bar.sync and fences: where lanes go next."""

from __future__ import annotations

import numpy as np

from .form import Form
from .machine import WARP, Machine
from .moves import Effect
from .program import Immediate, Program, Symbol

# Instructions after which the lanes may part or stop.
OPCODES = {"bra", "ret", "exit", "bar", "barrier"}


def branch(form: Form, program: Program) -> Effect:
    """bra{.uni} label."""
    form.flag("uni")
    form.done(operands=1)
    (label,) = form.instruction.operands
    if not isinstance(label, Symbol) or label.name not in program.labels:
        raise form.unsupported("label")
    target = program.labels[label.name]
    return lambda machine: machine.jump(target)


def leave(form: Form, program: Program) -> Effect:
    """ret and exit."""
    form.flag("uni")
    form.done(operands=0)
    return Machine.exit


def barrier(form: Form, program: Program) -> Effect:
    """bar.sync and barrier.sync of a whole block; bar.warp.sync of a warp, which runs in step.

    In step or not, only then does a warp see what copies of its own lanes have brought.
    """
    operands = form.instruction.operands
    if form.flag("warp"):
        form.one_of("sync")
        form.done(operands=1)
        return _join_warps
    form.one_of("sync")
    form.flag("cta", "aligned")
    form.done()
    numbers = [operand.bits for operand in operands if isinstance(operand, Immediate)]
    if len(numbers) != len(operands) or numbers[1:] not in ([], [program.block]):
        raise form.unsupported("a barrier of a part of the block")

    def execute(machine: Machine) -> None:
        machine.whole_warps()
        machine.wait(numbers[0])

    return execute


def _join_warps(machine: Machine) -> None:
    whole = machine.active.reshape(-1, WARP).all(axis=1)
    machine.shared.copies.join(np.repeat(whole, WARP))


def fence(form: Form, program: Program) -> Effect:
    """membar, fence: an order that lock-step has anyway, but between instructions and products."""
    if form.flag("proxy") and form.flag("async"):
        return _fence_proxy
    return lambda machine: None


def _fence_proxy(machine: Machine) -> None:
    machine.fenced = np.where(machine.active, machine.epoch[machine.slot], machine.fenced)
