"""Which engine runs a chain, and why the others do not.

A name asked for is used or refused with the reason; only "auto" chooses.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastddpm.engine import compiled, eager
from fastddpm.engine.cuda_graph import CudaGraphs
from fastddpm.engine.plan import CannotPrepare, Plan, Prepare, Runner, Step

ENGINES = ("auto", "reference", "compile", "cuda_graph", "cpu")


@dataclass(frozen=True)
class Engine:
    """One way to prepare a step.

    name: "reference", "eager" (the same loop, with the fast ops), "compile" or "cuda_graph".
    what: the same in words, for people.
    """

    name: str
    what: str
    prepare: Prepare


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

    @property
    def captures(self) -> bool:
        """Whether the step is compiled or captured, not called by Python every time."""
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


def unsupported(name: str, device: torch.device) -> str | None:
    """Why the engine cannot run on this device, or None if it can."""
    if name == "cuda_graph" and device.type != "cuda":
        return f"it needs a CUDA device, the chain is on {device}"
    if name == "compile" and device.type not in ("cuda", "cpu"):
        return f"it runs on CUDA devices and the CPU, the chain is on {device}"
    if name == "cpu":
        wrong = device.type != "cpu"
        return f"it runs on the CPU, the chain is on {device}" if wrong else "it is not built yet"
    return None


def select(name: str, device: torch.device) -> Selection:
    """The engine for ``name`` on ``device``; ValueError with the reason if that one cannot run."""
    if name not in ENGINES:
        raise ValueError(f"engine is one of {', '.join(ENGINES)}; got {name!r}")
    reason = unsupported(name, device)
    if reason is not None:
        raise ValueError(f"engine {name!r} cannot run: {reason}; 'auto' and 'reference' can")
    engines = _candidates(name, device)
    named = {"auto", "reference", name, *(engine.name for engine in engines)}
    others = {
        other: unsupported(other, device) or "it runs when it is asked for by name"
        for other in ENGINES
        if other not in named
    }
    return Selection(engines, "reference" if name == "reference" else "auto", others)


def _candidates(name: str, device: torch.device) -> tuple[Engine, ...]:
    """The engines to try, the first first. A graph of the step as it is still is a graph."""
    reference = Engine(
        "reference", "the plain loop with the reference ops, one call per step", eager.prepare
    )
    plain = Engine("eager", "the plain loop, one Python call per step", eager.prepare)
    compile = Engine("compile", "the step under torch.compile, one call per step", compiled.prepare)
    graphs = (
        Engine("cuda_graph", "a CUDA graph of the compiled step, replayed", CudaGraphs().prepare),
        Engine(
            "cuda_graph", "a CUDA graph of the step, replayed", CudaGraphs(compile=False).prepare
        ),
    )
    if name == "auto":
        return (*graphs, compile, plain) if device.type == "cuda" else (plain,)
    return {"reference": (reference,), "compile": (compile,), "cuda_graph": graphs}[name]
