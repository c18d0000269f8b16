"""resources(compiled): what the machine code of a kernel takes, read from its cubin.

cuobjdump and nvdisasm, which Triton brings along, give the registers and the instructions.
"""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from .compile_worker import Compiled

# "  /*02d0*/  @P0 LDG.E.128 R8, [R18.64] ;", or a label: address, opcode with its modifiers.
INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);")
LABEL = re.compile(r"^(\.L\w+):", re.MULTILINE)


@dataclass(frozen=True)
class Resources:
    """Registers a thread; stack bytes a thread; shared bytes a program; instructions by kind.

    spills:        loads and stores of local memory (LDL, STL).
    loads, stores: global accesses by their bits.
    special:       instructions of the special function unit (MUFU).
    branches:      branches, of which ``loops`` go back.
    instructions:  all of them, but the padding after the last EXIT.
    """

    registers: int
    stack: int
    shared: int
    spills: int
    loads: Counter[int]
    stores: Counter[int]
    special: int
    branches: int
    loops: int
    instructions: int


def resources(compiled: Compiled) -> Resources:
    """Read a cubin."""
    usage = _run_tool("cuobjdump", "-res-usage", compiled.cubin)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    code = _instructions(_run_tool("nvdisasm", "-c", compiled.cubin))
    opcodes = Counter(opcode.split(".")[0] for _, opcode, _ in code)
    branches = [(at, target) for at, opcode, target in code if opcode.startswith("BRA")]
    return Resources(
        registers=int(found[1]),
        stack=int(found[2]),
        shared=compiled.shared,
        spills=opcodes["LDL"] + opcodes["STL"],
        loads=_widths(code, "LDG"),
        stores=_widths(code, "STG"),
        special=opcodes["MUFU"],
        branches=len(branches),
        loops=sum(target <= at for at, target in branches),
        instructions=len(code),
    )


def _instructions(text: str) -> list[tuple[int, str, int]]:
    """Address, opcode and branch target (or −1) of each instruction, without the padding."""
    places: dict[str, int] = {}
    code: list[tuple[str, str]] = []
    for line in text.splitlines():
        if label := LABEL.match(line):
            places[label[1]] = len(code)
        elif found := INSTRUCTION.search(line):
            target = re.search(r"`\((\.L\w+)\)", found[3])
            code.append((found[2], target[1] if target else ""))
    resolved = [(i, op, places.get(t, -1)) for i, (op, t) in enumerate(code)]
    # After the code comes a branch to itself, then NOPs up to a multiple of the fetch size.
    while resolved and (resolved[-1][1] == "NOP" or resolved[-1][2] == resolved[-1][0]):
        resolved.pop()
    return resolved


def _widths(code: list[tuple[int, str, int]], opcode: str) -> Counter[int]:
    """Accesses by bits: LDG.E.128, LDG.E.U16, LDG.E (32)."""
    widths: Counter[int] = Counter()
    for _, name, _ in code:
        first, *modifiers = name.split(".")
        if first == opcode:
            sizes = [int(m.lstrip("US")) for m in modifiers if re.fullmatch(r"[US]?\d+", m)]
            widths[sizes[0] if sizes else 32] += 1
    return widths


@functools.cache
def _run_tool(tool: str, option: str, cubin: bytes) -> str:
    import triton

    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([program, option, file.name], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{tool}: {done.stderr}")
    return done.stdout
