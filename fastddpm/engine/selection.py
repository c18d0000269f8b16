"""Which engine runs a chain, and why the others do not.

A name asked for is used or refused with the reason; only "auto" chooses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from fastddpm.engine import compiled, eager
from fastddpm.engine.cpu.options import CpuOptions
from fastddpm.engine.cpu_program import CpuPrograms
from fastddpm.engine.cuda_graph import CudaGraphs
from fastddpm.engine.plan import CannotPrepare, Plan, Prepare, Runner, Step
from fastddpm.ops.library import cpu_library

ENGINES = ("auto", "reference", "compile", "cuda_graph", "cpu")


@dataclass(frozen=True)
class Engine:
    """One way to prepare a step.

    name:   "reference", "eager" (the same loop, with the fast ops), "compile", "cuda_graph" or
            "cpu".
    what:   the same in words, for people.
    report: what more there is to say of it, a line each.
    pixels: the most that a batch has, where more at once are hardly faster; None: any number.
    """

    name: str
    what: str
    prepare: Prepare
    report: Callable[[], list[str]] = list
    pixels: int | None = None


class Selection:
    """The engine that runs, and those that take over where it cannot prepare a step.

    backend: the backend for ops, "reference" or "auto".
    others:  engine name -> why it does not run here.
    notes:   what was tried and could not prepare a step, in words.
    """

    def __init__(self, engines: tuple[Engine, ...], backend: str, others: dict[str, str]) -> None:
        self._engines = engines
        self.backend = backend
        self.others = others
        self.notes: list[str] = []

    @property
    def name(self) -> str:
        """The engine that runs, or will."""
        return self._engines[0].name

    @property
    def what(self) -> str:
        """The same in words."""
        return self._engines[0].what

    def report(self) -> list[str]:
        """What more there is to say of it, a line each."""
        return self._engines[0].report()

    def batch(self, count: int, shape: Sequence[int]) -> int:
        """How many of ``count`` samples [C, H, W] to run at once: all of them, or equal parts."""
        pixels = self._engines[0].pixels
        if pixels is None or count == 0:
            return max(count, 1)
        most = max(pixels // max(math.prod(shape[1:]), 1), 1)
        return -(-count // -(-count // most))

    @property
    def captures(self) -> bool:
        """Whether the step is compiled or captured as it computes, in torch's own operations."""
        return self.name in ("compile", "cuda_graph")

    def prepare(self, step: Step, plan: Plan) -> Runner:
        """Prepare ``step`` with the first engine that can; one that cannot is not tried again.

        Raises CannotPrepare (a ValueError) if the last one cannot. What the step raises by itself
        goes through.
        """
        while True:
            try:
                return self._engines[0].prepare(step, plan)
            except CannotPrepare as error:
                if len(self._engines) == 1:
                    raise
                self._give_up(str(error))

    def _give_up(self, why: str) -> None:
        """Go on with the next engine."""
        before, *left = self._engines
        self._engines = tuple(left)
        self.notes.append(f"{before.what} could not prepare the chain: {why}")
        if before.name not in [engine.name for engine in left]:
            self.others[before.name] = why


def unsupported(name: str, device: torch.device, unfit: str | None = None) -> str | None:
    """Why the engine cannot run on this device, or None if it can. unfit: as in ``select``."""
    if name == "cuda_graph" and device.type != "cuda":
        return f"it needs a CUDA device, the chain is on {device}"
    if name == "compile" and device.type not in ("cuda", "cpu"):
        return f"it runs on CUDA devices and the CPU, the chain is on {device}"
    if name == "cpu" and device.type != "cpu":
        return f"it runs on the CPU, the chain is on {device}"
    if name == "cpu" and cpu_library().handle is None:
        return cpu_library().reason
    return unfit if name == "cpu" else None


def select(
    name: str,
    device: torch.device,
    options: CpuOptions | None = None,
    *,
    unfit: str | None = None,
) -> Selection:
    """The engine for ``name`` on ``device``.

    options: of the CPU engine. unfit: why the CPU engine cannot take the steps to come, if the
    caller knows already.

    Raises ValueError with the reason if the engine asked for cannot run, or if options other than
    the default are given and the CPU engine does not run.
    """
    if name not in ENGINES:
        raise ValueError(f"engine is one of {', '.join(ENGINES)}; got {name!r}")
    reason = unsupported(name, device, unfit)
    if reason is not None:
        raise ValueError(f"engine {name!r} cannot run: {reason}; 'auto' and 'reference' can")
    options = options or CpuOptions()
    engines = _candidates(name, device, options, unfit)
    named = {"auto", "reference", name, *(engine.name for engine in engines)}
    if "cpu" not in named and options != CpuOptions():
        why = unsupported("cpu", device, unfit) or f"engine={name!r} was asked for"
        raise ValueError(
            f"threads, weights and memory are settings of engine 'cpu', which does not run: {why}"
        )
    others = {
        other: unsupported(other, device, unfit) or "it runs when it is asked for by name"
        for other in ENGINES
        if other not in named
    }
    return Selection(engines, "reference" if name == "reference" else "auto", others)


def _candidates(
    name: str, device: torch.device, options: CpuOptions, unfit: str | None
) -> tuple[Engine, ...]:
    """The engines to try, the first first. A graph of the step as it is still is a graph."""
    reference = Engine(
        "reference", "the plain loop with the reference ops, one call per step", eager.prepare
    )
    plain = Engine("eager", "the plain loop, one Python call per step", eager.prepare)
    compile = Engine("compile", "the step under torch.compile, one call per step", compiled.prepare)
    graphs = (
        Engine("cuda_graph", "a CUDA graph of the step, replayed", CudaGraphs().prepare),
        Engine(
            "cuda_graph",
            "a CUDA graph of the step as it is, replayed",
            CudaGraphs(compile=False).prepare,
        ),
    )
    if name == "auto" and device.type == "cuda":
        return (*graphs, compile, plain)
    if name == "cpu" or (name == "auto" and unsupported("cpu", device, unfit) is None):
        programs = CpuPrograms(options)
        what = "the step as a native program, replayed"
        cpu = Engine("cpu", what, programs.prepare, programs.report, programs.pixels)
        return (cpu,) if name == "cpu" else (cpu, plain)
    if name == "auto":
        return (plain,)
    return {"reference": (reference,), "compile": (compile,), "cuda_graph": graphs}[name]
