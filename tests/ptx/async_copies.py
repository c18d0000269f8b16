"""cp.async, cp.async.commit_group, cp.async.wait_group: copies that go on while their lanes run on.

copies.py says what is a fault between a copy and the wait for it.
"""

from __future__ import annotations

import numpy as np

from .copies import Copy
from .faults import Unsupported
from .form import Form
from .machine import Machine
from .moves import Effect
from .program import Immediate, Operand, Register
from .scalars import Array

HINTS = ("L2::cache_hint", "L2::64B", "L2::128B", "L2::256B")


def copy(form: Form) -> Effect:
    """cp.async and what commits and awaits it; cp.async.bulk and mbarriers are not known."""
    form.one_of("async")
    if form.flag("commit_group"):
        form.done(operands=0)
        return _commit
    if form.flag("wait_all"):
        form.done(operands=0)
        return lambda machine: _land(machine, machine.groups + 1)
    if form.flag("wait_group"):
        form.done(operands=1)
        (left,) = form.instruction.operands
        return lambda machine: _land(machine, machine.groups - machine.bits(left, 32))
    return _copy(form)


def _copy(form: Form) -> Effect:
    """cp.async.{ca, cg}.shared.global [to], [from], bytes{, bytes to read | ignore from}{, hint}.

    What it does not read of its bytes becomes zero.
    """
    cache = form.one_of("ca", "cg")
    form.one_of("shared")
    form.one_of("global")
    hinted = "L2::cache_hint" in form.left
    form.flag(*HINTS)
    form.done()
    target, source, size, *rest = form.instruction.operands
    given = rest[:-1] if hinted else rest
    if not isinstance(size, Immediate) or size.bits not in ((16,) if cache == "cg" else (4, 8, 16)):
        raise form.unsupported(f"a size for .{cache}")
    if len(given) > 1:
        raise form.unsupported("operands")
    count = size.bits

    def execute(machine: Machine) -> None:
        read = _reads(machine, given[0], count) if given else machine.active[machine.active]
        values = _load(machine, machine.addresses(source), read, count)
        addresses = machine.addresses(target)
        group = machine.groups[machine.active]
        machine.shared.copy(addresses, values, group, machine.requests(addresses))

    return execute


def _reads(machine: Machine, given: Operand, size: int) -> Array:
    """Which of the active lanes read their bytes; the others write zeros."""
    if isinstance(given, Register) and machine.program.widths[given.name] == 1:
        ignored = machine.bits(given, 1)
        return ~ignored[machine.active]
    count = machine.bits(given, 32)
    machine.refuse(count > size, f"reads more than the {size} bytes that it copies")
    some = count[machine.active]
    if ((some != 0) & (some != size)).any():
        raise Unsupported(f"a copy of a part of its bytes: {machine.text}")
    return some == size


def _load(machine: Machine, addresses: Array, read: Array, size: int) -> Array:
    """32-bit words [n, size / 4], zeros where nothing is read."""
    who = machine.requests(addresses)
    who.refuse(addresses % size != 0, f"misaligned: no multiple of {size} bytes")
    words = np.zeros((len(addresses), size // 4), np.uint32)
    rows = np.flatnonzero(read)
    words[rows] = machine.memory.load(addresses[rows], 32, size // 4, who[rows], constant=True)
    return words


def _commit(machine: Machine) -> None:
    machine.groups += machine.active


def _land(machine: Machine, end: Array) -> None:
    """Let the active lanes' copies arrive that belong to groups before ``end``."""

    def ready(copy: Copy) -> Array:
        done: Array = machine.active[copy.lane] & (copy.group < end[copy.lane])
        return done

    machine.shared.copies.land(ready, lambda copy: machine.requests(copy.address, copy.lane))
