"""The table from opcode to function, and the decoding of a program through it.

Not known, and so Unsupported: products into tensor memory (tcgen05), mbarriers, bulk copies
(cp.async.bulk: TMA), clusters of blocks, local memory, calls.
"""

from __future__ import annotations

from collections.abc import Callable

from . import (
    async_copies,
    control,
    conversions,
    floats,
    integers,
    memory_access,
    moves,
    products,
    warp,
    warp_groups,
)
from .faults import Unsupported
from .form import Form
from .machine import Code, Machine, Step
from .moves import Effect
from .operation import Operation
from .program import Instruction, Program
from .scalars import width

OPERATIONS: dict[str, Callable[[Form], Operation | Effect]] = {
    **dict.fromkeys(("add", "sub", "min", "max", "neg", "abs", "div", "rem"), integers.arithmetic),
    **dict.fromkeys(("and", "or", "xor", "not"), integers.logical),
    **dict.fromkeys(("shl", "shr"), integers.shift),
    **dict.fromkeys(("popc", "clz"), integers.count_bits),
    "mul": integers.multiply,
    "mad": integers.multiply_add,
    "shf": integers.funnel_shift,
    "bfe": integers.extract,
    "bfi": integers.insert,
    "prmt": integers.permute,
    "lop3": integers.three_inputs,
    "fma": floats.arithmetic,
    **dict.fromkeys(floats.UNARY, floats.unary),
    "cvt": conversions.convert,
    "mov": moves.move,
    "selp": moves.select,
    "setp": moves.compare,
    "ld": memory_access.load,
    "st": memory_access.store,
    **dict.fromkeys(("atom", "red"), memory_access.atomic),
    **dict.fromkeys(("ldmatrix", "stmatrix"), memory_access.matrix),
    "createpolicy": memory_access.create_policy,
    "cp": async_copies.copy,
    "mma": products.multiply,
    "wgmma": warp_groups.instruction,
    "shfl": warp.shuffle,
    "redux": warp.reduce,
    "vote": warp.vote,
    "match": warp.match,
    "activemask": warp.active_mask,
}
CONTROL: dict[str, Callable[[Form, Program], Effect]] = {
    "bra": control.branch,
    **dict.fromkeys(("ret", "exit"), control.leave),
    **dict.fromkeys(("bar", "barrier"), control.barrier),
    **dict.fromkeys(("membar", "fence"), control.fence),
}


def decode(program: Program) -> Code:
    """Every instruction as a step; Unsupported for one that is not in the tables."""
    steps = [Step(i, _effect(i, program)) for i in program.instructions]
    return Code(program, steps, _ends(program))


def _effect(instruction: Instruction, program: Program) -> Effect:
    form = Form(instruction)
    if instruction.opcode in CONTROL:
        return CONTROL[instruction.opcode](form, program)
    if instruction.opcode not in OPERATIONS:
        raise Unsupported(f"instruction: {instruction.text}")
    effect = OPERATIONS[instruction.opcode](form)
    return _computing(instruction, effect) if isinstance(effect, Operation) else effect


def _computing(instruction: Instruction, operation: Operation) -> Effect:
    target, *sources = instruction.operands
    sizes = [width(kind) for kind in operation.sources]

    def execute(machine: Machine) -> None:
        values = [machine.bits(*pair) for pair in zip(sources, sizes, strict=True)]
        machine.write(target, operation.evaluate(*values), operation.result)

    return execute


def _ends(program: Program) -> list[int]:
    """For each instruction, where its straight line ends: after control, before a label."""
    labels = set(program.labels.values())
    ends, end = [], len(program.instructions)
    for index in reversed(range(len(program.instructions))):
        if program.instructions[index].opcode in control.OPCODES or index + 1 in labels:
            end = index + 1
        ends.append(end)
    return ends[::-1]


def shared_grain(program: Program) -> int:
    """The smallest number of bytes that the program accesses in shared memory."""
    accesses = [i for i in program.instructions if "shared" in i.modifiers and i.opcode != "cp"]
    return min((width(i.modifiers[-1]) // 8 for i in accesses), default=4)
