"""PTX text to instruction objects: the parser.

It reads what LLVM's NVPTX back end and Triton's inline assembly write: one kernel a module. Syntax
as in NVIDIA's "PTX ISA", chapters 4 and 5. Directives that carry debug information are skipped, but
for ``.loc``, whose comment gives each instruction its line of Python.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from .faults import Unsupported


@dataclass(frozen=True)
class Register:
    """A virtual register of the kernel, such as ``%r12``; ``%p1|%p2`` keeps ``other``."""

    name: str
    other: str | None = None


@dataclass(frozen=True)
class Special:
    """A read-only register of the machine, such as ``%tid.x``."""

    name: str


@dataclass(frozen=True)
class Immediate:
    """A literal: its bits in two's complement, or those of a 0f / 0d floating-point number."""

    bits: int


@dataclass(frozen=True)
class Symbol:
    """A label, a parameter or a shared array."""

    name: str


@dataclass(frozen=True)
class Address:
    """``[base + offset]``."""

    base: Register | Symbol | Immediate
    offset: int


@dataclass(frozen=True)
class Vector:
    """``{a, b, ...}``: the registers of a vector access or of a packing move."""

    items: tuple[Operand, ...]


Operand = Register | Special | Immediate | Symbol | Address | Vector


@dataclass(frozen=True)
class Instruction:
    """One instruction: ``@!%p1 opcode.modifiers operands``."""

    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]
    predicate: str | None
    negated: bool
    text: str
    source: str


@dataclass(frozen=True)
class Parameter:
    """A kernel parameter: its name and its size in bytes."""

    name: str
    size: int


@dataclass
class Program:
    """One kernel: its parameters, threads a block, registers and instructions."""

    name: str
    parameters: list[Parameter]
    block: int
    widths: dict[str, int] = field(default_factory=dict)  # bits of each register; 1 for predicates
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    shared: str | None = None  # the extern shared array

    @property
    def accumulators(self) -> set[str]:
        """Registers that products under way (wgmma) sum into."""
        products = [
            i for i in self.instructions if i.opcode == "wgmma" and "mma_async" in i.modifiers
        ]
        vectors = [v for product in products for v in product.operands[:1] if isinstance(v, Vector)]
        return {r.name for vector in vectors for r in vector.items if isinstance(r, Register)}


def parse(ptx: str) -> Program:
    """The one kernel of a PTX module; Unsupported for syntax outside the subset above."""
    entry = re.search(r"\.entry\s+(\w+)\s*\((.*?)\)(.*?)\n\{\n(.*?)\n\}", ptx, re.DOTALL)
    if entry is None:
        raise Unsupported("no .entry in this PTX")
    name, parameters, directives, body = entry.groups()
    block = re.search(r"\.reqntid\s+(\d+)", directives)
    if block is None:
        raise Unsupported(f"{name} has no .reqntid")
    program = Program(
        name, [_parameter(p) for p in parameters.split(",") if p.strip()], int(block.group(1))
    )
    shared = re.search(r"\.extern\s+\.shared\s+\.align\s+\d+\s+\.b8\s+(\w+)\[\]", ptx)
    program.shared = shared.group(1) if shared else None
    for statement, source in _statements(body):
        _add(program, statement, source)
    return program


def _parameter(text: str) -> Parameter:
    words = text.split()
    return Parameter(words[-1], int(re.sub(r"\D", "", words[1])) // 8)


def _statements(body: str) -> Iterator[tuple[str, str]]:
    """Each statement with the line of Python it comes from; labels are statements of their own."""
    source, pending = "", ""
    for line in body.split("\n"):
        code, _, comment = line.partition("//")
        code = code.strip()
        directive = code.split()[0] if code else ""
        if directive == ".loc":
            source = comment.strip()
        elif directive not in (".file", ".section", ".pragma"):
            *whole, pending = f"{pending} {code}".split(";")
            for statement in whole:
                yield from ((text, source) for text in _without_prefix(statement))
    for label in _without_prefix(pending):
        if not label.endswith(":"):
            raise Unsupported(f"unfinished statement: {label}")
        yield label, source


def _without_prefix(statement: str) -> Iterator[str]:
    """The labels before a statement, each with its colon, and the statement."""
    # A brace at a statement's start opens or closes a scope; a vector's stands among operands.
    text = statement.lstrip("{} \t")
    while label := re.match(r"[\w$]+:(?!:)", text):
        yield label.group()
        text = text[label.end() :].lstrip("{} \t")
    if text:
        yield text.strip()


def _add(program: Program, statement: str, source: str) -> None:
    if statement.endswith(":"):
        program.labels[statement[:-1]] = len(program.instructions)
    elif statement.startswith(".reg"):
        _declare(program, statement)
    elif statement.startswith("."):
        raise Unsupported(f"directive: {statement}")
    else:
        program.instructions.append(_instruction(program, statement, source))


def _declare(program: Program, statement: str) -> None:
    _, kind, names = statement.split(None, 2)
    width = 1 if kind == ".pred" else int(kind[2:])
    for name in (name.strip() for name in names.split(",")):
        count = re.fullmatch(r"(.*)<(\d+)>", name)
        each = [f"{count[1]}{i}" for i in range(int(count[2]))] if count else [name]
        program.widths.update(dict.fromkeys(each, width))


def _instruction(program: Program, statement: str, source: str) -> Instruction:
    match = re.fullmatch(r"(?:@(!?)\s*(\S+)\s+)?([\w.:]+)\s*(.*)", statement, re.DOTALL)
    if match is None:
        raise Unsupported(f"syntax: {statement}")
    negation, predicate, mnemonic, operands = match.groups()
    opcode, *modifiers = mnemonic.split(".")
    texts = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*", operands)
    return Instruction(
        opcode,
        tuple(modifiers),
        tuple(_operand(program, text.strip()) for text in texts),
        predicate,
        bool(negation),
        " ".join(statement.split()),
        source,
    )


def _operand(program: Program, text: str) -> Operand:
    if text.startswith("{"):
        items = [_operand(program, item.strip()) for item in text.strip("{}").split(",")]
        return items[0] if len(items) == 1 else Vector(tuple(items))
    if text.startswith("["):
        base, _, offset = text.strip("[] ").partition("+")
        address = _operand(program, base.strip())
        if not isinstance(address, Register | Symbol | Immediate):
            raise Unsupported(f"address: {text}")
        return Address(address, int(offset or "0", 0))
    if re.fullmatch(r"0[fFdD][0-9a-fA-F]+", text):
        return Immediate(int(text[2:], 16))
    if re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)U?", text):
        return Immediate(int(text.rstrip("U"), 0))
    first, _, second = text.partition("|")
    if first in program.widths or first == "_":
        return Register(first, second or None)
    return Special(text) if text.startswith("%") else Symbol(text)
