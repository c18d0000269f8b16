"""execute(launch, sm): run the PTX of a Launch in numpy, into the launch's own tensors.

The run is strict (cells.py and memory.py say what is a fault), and counts bytes and instructions.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .decode import decode, shared_grain
from .machine import Code, Machine
from .memory import Traffic
from .offline import Compiled, compile
from .program import Parameter, parse
from .scalars import Array
from .shared_memory import SharedMemory
from .tensors import Fill, Tensors

if TYPE_CHECKING:
    from fastddpm.kernels.common.launch import Launch

# Programs that run together have about this many lanes: enough for numpy, few enough for caches.
LANES = 1 << 14


@dataclass(frozen=True)
class Execution:
    """What a run did.

    compiled:      the code that ran.
    traffic:       bytes moved, by argument; arguments that share a storage share an entry.
    instructions:  lanes that executed each PTX opcode.
    steps:         PTX instructions in the code.
    """

    compiled: Compiled
    traffic: dict[str, Traffic]
    instructions: Counter[str]
    steps: int
    tensors: Tensors

    @property
    def bytes_moved(self) -> int:
        """Bytes loaded and stored, each once for every program that touches it."""
        distinct = {id(traffic): traffic for traffic in self.traffic.values()}
        return sum(traffic.loaded + traffic.stored for traffic in distinct.values())

    def read(self, name: str, start: int, count: int) -> tuple[Array, Array]:
        """Elements from ``start`` of an argument on the meta device: bits, and if it was stored."""
        return self.tensors.regions[name].read(start, count)


def execute(
    launch: Launch,
    sm: int,
    *,
    in_place: Collection[str] = (),
    partial: Collection[str] = (),
    programs: Sequence[tuple[int, ...]] | None = None,
    fill: Mapping[str, Fill] | None = None,
) -> Execution:
    """Run a launch as a GPU of compute capability sm / 10 would; a Fault if anything is wrong.

    in_place:  arguments among ``launch.writes`` that hold a value before the launch; the others are
               uninitialised, and to read them before they are written is a fault.
    partial:   arguments among ``launch.writes`` that need not be written in full.
    programs:  run only these programs (x, y, z) of the grid; then nothing need be written in full.
    fill:      for tensors on the meta device, which have their size but no memory: (start, count)
               gives the elements from there. Without one, only what the kernel has written can be
               read. ``Execution.read`` reads them back.
    """
    return execute_compiled(
        compile(launch, sm),
        launch,
        in_place=in_place,
        partial=partial,
        programs=programs,
        fill=fill,
    )


def execute_compiled(
    compiled: Compiled,
    launch: Launch,
    *,
    in_place: Collection[str] = (),
    partial: Collection[str] = (),
    programs: Sequence[tuple[int, ...]] | None = None,
    fill: Mapping[str, Fill] | None = None,
) -> Execution:
    """``execute`` of code that is at hand; of the launch, its arguments, grid and writes count."""
    code = decode(parse(compiled.ptx))
    tensors = Tensors(launch, in_place, fill or {})
    arguments = {**launch.arguments, **tensors.addresses}
    given = [arguments[name] for name in compiled.parameters]
    _run(code, compiled.shared, given, tensors, _grid(launch.grid), programs)
    for name in tensors.writes:
        tensors.copy_out(name, complete=programs is None and name not in partial)
    instructions: Counter[str] = Counter()
    for step in code.steps:
        instructions[step.instruction.opcode] += step.count
    traffic = {name: region.traffic for name, region in tensors.regions.items()}
    return Execution(compiled, traffic, instructions, len(code.steps), tensors)


def _grid(grid: Sequence[int]) -> tuple[int, int, int]:
    x, y, z = (*grid, 1, 1)[:3]
    return x, y, z


def _run(
    code: Code,
    shared_bytes: int,
    arguments: Sequence[object],
    tensors: Tensors,
    grid: tuple[int, int, int],
    programs: Sequence[tuple[int, ...]] | None,
) -> None:
    """Run the programs, some at a time."""
    parameters = _parameters(code.program.parameters, arguments)
    blocks = np.arange(grid[0] * grid[1] * grid[2])
    if programs is not None:
        places = [(*program, 0, 0)[:3] for program in programs]
        blocks = np.array([x + grid[0] * (y + grid[1] * z) for x, y, z in places], np.int64)
    together = max(1, LANES // code.program.block)
    grain = shared_grain(code.program)
    for start in range(0, len(blocks), together):
        chunk = blocks[start : start + together]
        shared = SharedMemory(len(chunk), shared_bytes, grain)
        Machine(code, parameters, tensors.memory, shared, grid, chunk).run()
        for region in tensors.memory.regions:
            region.settle()


def _parameters(names: Sequence[Parameter], arguments: Sequence[object]) -> dict[str, int]:
    """The bits of each parameter; Triton's own (scratch memory) come last and are null."""
    values = {parameter.name: 0 for parameter in names}
    for parameter, value in zip(names, arguments, strict=False):
        if isinstance(value, float):
            value = int.from_bytes(struct.pack({4: "<f", 8: "<d"}[parameter.size], value), "little")
        assert isinstance(value, int)
        values[parameter.name] = value & ((1 << 8 * parameter.size) - 1)
    return values
