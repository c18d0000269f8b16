"""figures(launches): what each kernel of a call costs, from its machine code and one execution."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import Tensor

from fastddpm.kernels.common.launch import Launch

from .compile_worker import Compiled
from .execution import Execution, execute
from .sass import Resources, resources


@dataclass(frozen=True)
class Figures:
    """One kernel of one call on one kind of GPU.

    warps:         of 32 threads a program.
    registers, stack, spills, shared: see Resources.
    load_bits, store_bits: widths of the bulk accesses: those to tensors to or from which at least
                   a quarter as many bytes move as for the busiest. Rows and statistics are less.
    special:       special-function instructions an element.
    instructions:  machine instructions an element; of a kernel with a loop, as often as its PTX
                   instructions are executed on average.
    bytes_moved:   loaded and stored, each byte once for every program that touches it.
    least_bytes:   of the tensors that it is given, each once, or twice if updated in place.
    code:          what was compiled and run.
    """

    kernel: str
    sm: int
    warps: int
    registers: int
    stack: int
    spills: int
    shared: int
    load_bits: tuple[int, ...]
    store_bits: tuple[int, ...]
    special: float
    instructions: float
    bytes_moved: int
    least_bytes: int
    code: Compiled


def figures(
    launches: Sequence[Launch], sm: int, elements: int, in_place: Collection[str] = ()
) -> list[Figures]:
    """The kernels of a call that computes this many elements; the launches are executed."""
    return [_figures(launch, sm, elements, in_place) for launch in launches]


def _figures(launch: Launch, sm: int, elements: int, in_place: Collection[str]) -> Figures:
    run = execute(launch, sm, in_place=in_place, partial=launch.writes)
    read = resources(run.compiled)
    threads = 32 * run.compiled.num_warps
    for size in launch.grid:
        threads *= size
    often = _repeats(run, read, threads) * threads / elements
    return Figures(
        kernel=launch.name,
        sm=sm,
        warps=run.compiled.num_warps,
        registers=read.registers,
        stack=read.stack,
        spills=read.spills,
        shared=read.shared,
        load_bits=_bulk_bits(run, "load"),
        store_bits=_bulk_bits(run, "store"),
        special=read.special * often,
        instructions=read.instructions * often,
        bytes_moved=run.bytes_moved,
        least_bytes=_least_bytes(launch, in_place),
        code=run.compiled,
    )


def _least_bytes(launch: Launch, in_place: Collection[str]) -> int:
    """Of tensors given twice, one."""
    given = {n: t for n, t in launch.arguments.items() if isinstance(t, Tensor)}
    once = {(t.data_ptr(), t.nbytes): t.nbytes for t in given.values()}
    return sum(once.values()) + sum(t.nbytes for n, t in given.items() if n in in_place)


def _repeats(run: Execution, read: Resources, threads: int) -> float:
    """How often a PTX instruction of a kernel with a loop is executed, on average."""
    if not read.loops:
        return 1.0
    return max(1.0, sum(run.instructions.values()) / run.steps / threads)


def _bulk_bits(run: Execution, kind: str) -> tuple[int, ...]:
    moved = {id(t): t for t in run.traffic.values()}.values()
    largest = max((t.loaded + t.stored for t in moved), default=0)
    bulk = [t for t in moved if 4 * (t.loaded + t.stored) >= largest]
    return tuple(sorted({bits for t in bulk for way, bits in t.widths if way == kind}))
