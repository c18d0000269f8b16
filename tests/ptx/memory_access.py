"""ld, st, atom, red, ldmatrix, stmatrix: the instructions that touch memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .form import Form
from .machine import WARP, Machine
from .moves import Effect
from .program import Address, Operand, Register, Symbol, Vector
from .scalars import UNSIGNED, Array, decode, encode, width

# Hints and orderings that change nothing here: caches, eviction, scopes. Lanes run in lock-step.
HINTS = (
    *("ca", "cg", "cs", "cv", "wb", "wt", "lu", "nc", "volatile", "weak"),
    *("relaxed", "acquire", "release", "acq_rel", "cta", "gpu", "sys"),
    *("L1::evict_first", "L1::evict_last", "L1::evict_normal", "L1::evict_unchanged"),
    *("L1::no_allocate", "L2::cache_hint", "L2::64B", "L2::128B", "L2::256B"),
)

UPDATES: dict[str, Callable[[Array, Array], Array]] = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "exch": lambda old, new: new,
}


def load(form: Form) -> Effect:
    """ld.{param, global, shared}{.v2, .v4, .v8}.<type>."""
    kind = form.kind()
    space = form.one_of("param", "global", "shared")
    if space == "param":
        form.done(operands=2)
        return _load_parameter(form, kind)
    target, source, count = _access(form, form.instruction.operands[0], 1)
    bits = width(kind)

    def execute(machine: Machine) -> None:
        addresses = machine.addresses(source)
        memory = machine.memory if space == "global" else machine.shared
        values = memory.load(addresses, bits, count, machine.requests(addresses))
        for i, register in enumerate(target):
            machine.write(register, _spread(machine, values[:, i]), kind)

    return execute


def store(form: Form) -> Effect:
    """st.{global, shared}{.v2, .v4, .v8}.<type>."""
    kind = form.kind()
    space = form.one_of("global", "shared")
    source, target, _ = _access(form, form.instruction.operands[1], 0)
    bits = width(kind)

    def execute(machine: Machine) -> None:
        addresses = machine.addresses(target)
        values = [machine.bits(register, bits)[machine.active] for register in source]
        memory = machine.memory if space == "global" else machine.shared
        memory.store(addresses, np.stack(values, axis=1), machine.requests(addresses))

    return execute


def _access(
    form: Form, registers: Operand, address: int
) -> tuple[tuple[Operand, ...], Operand, int]:
    """The registers, the address operand and the length of a vector access."""
    vector = form.one_of("v2", "v4", "v8", default="v1")
    # A cache hint brings its policy as a third operand.
    hinted = form.flag("L2::cache_hint")
    form.flag(*HINTS)
    form.done(operands=3 if hinted else 2)
    items = registers.items if isinstance(registers, Vector) else (registers,)
    if len(items) != int(vector[1]):
        raise form.unsupported(f"{len(items)} registers for .{vector}")
    return items, form.instruction.operands[address], len(items)


def _load_parameter(form: Form, kind: str) -> Effect:
    target, source = form.instruction.operands
    if not (isinstance(source, Address) and isinstance(source.base, Symbol) and not source.offset):
        raise form.unsupported("parameter address")
    name = source.base.name

    def execute(machine: Machine) -> None:
        value = machine.parameters[name] & ((1 << width(kind)) - 1)
        machine.write(target, np.full(machine.lanes, value, UNSIGNED[width(kind)]), kind)

    return execute


def _spread(machine: Machine, values: Array) -> Array:
    """Values of the active lanes as values of all lanes."""
    if machine.all_active:
        return values.copy()
    spread = np.zeros(machine.lanes, values.dtype)
    spread[machine.active] = values
    return spread


def atomic(form: Form) -> Effect:
    """atom.<op>.<type> d, [a], b and red.<op>.<type> [a], b; atom.cas takes b and c."""
    kind = form.kind()
    space = form.one_of("global", "shared")
    name = form.one_of(*UPDATES, "cas")
    form.flag(*HINTS)
    returns = form.instruction.opcode == "atom"
    form.done(operands=2 + returns + (name == "cas"))
    operands = form.instruction.operands
    target, (address, *sources) = operands[0], operands[1:] if returns else operands
    bits = width(kind)

    def execute(machine: Machine) -> None:
        addresses = machine.addresses(address)
        values = [machine.bits(source, bits)[machine.active] for source in sources]

        def update(row: int, old: Array) -> Array:
            if name == "cas":
                return np.where(old == values[0][row], values[1][row], old)
            new = UPDATES[name](decode(old, kind), decode(values[0][row : row + 1], kind))
            return encode(new, kind)

        memory = machine.memory if space == "global" else machine.shared
        old = memory.atomic(addresses, bits, update, machine.requests(addresses))
        if returns:
            machine.write(target, _spread(machine, old), kind)

    return execute


def matrix(form: Form) -> Effect:
    """ldmatrix / stmatrix.m8n8.{x1, x2, x4}{.trans}.shared.b16: 8x8 tiles over a warp's lanes.

    Lane 8 i + r gives the address of row r of tile i. A lane's register for a tile holds the two
    numbers (row lane / 4, columns 2 (lane % 4) and the next), or those transposed.
    """
    form.kind("b16")
    form.one_of("shared")
    form.one_of("m8n8")
    tiles = int(form.one_of("x1", "x2", "x4")[1])
    transposed = form.flag("trans")
    form.flag("sync", "aligned")
    form.done(operands=2)
    storing = form.instruction.opcode == "stmatrix"
    address, registers = form.instruction.operands[:: 1 if storing else -1]
    items = registers.items if isinstance(registers, Vector) else (registers,)

    def execute(machine: Machine) -> None:
        machine.whole_warps()
        rows = np.zeros(machine.lanes, np.int64)
        rows[machine.active] = machine.addresses(address)
        for tile, register in zip(range(tiles), items, strict=True):
            places = _places(machine, rows, tile, transposed)
            if storing:
                _store_tile(machine, places, register)
            else:
                _load_tile(machine, places, register)

    return execute


def _places(machine: Machine, rows: Array, tile: int, transposed: bool) -> list[Array]:
    """The addresses of each active lane's first and second number of a tile."""
    lane = machine.thread % WARP
    first = np.arange(machine.lanes) - lane + 8 * tile
    here = rows[first + lane % 8][machine.active]
    machine.requests(here).refuse(here % 16 != 0, "misaligned: no multiple of 16 bytes")
    across, along = lane // 4, lane % 4 * 2
    pairs = [(along + i, across) if transposed else (across, along + i) for i in (0, 1)]
    return [(rows[first + row] + 2 * column)[machine.active] for row, column in pairs]


def _store_tile(machine: Machine, places: list[Array], register: Operand) -> None:
    pair = np.ascontiguousarray(machine.bits(register, 32)[machine.active]).view(np.uint16)
    for i, place in enumerate(places):
        machine.shared.store(place, pair[i::2, None], machine.requests(place))


def _load_tile(machine: Machine, places: list[Array], register: Operand) -> None:
    pair = [machine.shared.load(place, 16, 1, machine.requests(place)) for place in places]
    whole = np.concatenate(pair, axis=1).view(np.uint32)[:, 0]
    machine.write(register, _spread(machine, whole), "b32")


def create_policy(form: Form) -> Effect:
    """createpolicy: a hint for caches, any number will do."""
    kind = form.kind("b64")
    target = form.instruction.operands[0]
    if not isinstance(target, Register):
        raise form.unsupported("destination")
    return lambda machine: machine.write(target, np.zeros(machine.lanes, np.uint64), kind)
