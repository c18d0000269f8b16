"""Which engine runs a chain, and why the others do not.

A name asked for is used or refused with the reason; only "auto" chooses.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastddpm.engine import eager
from fastddpm.engine.plan import Prepare

ENGINES = ("auto", "reference", "compile", "cuda_graph", "cpu")


@dataclass(frozen=True)
class Selection:
    """The engine that will run.

    name:    "reference" or "eager" (the same loop; "reference" also keeps to the reference ops).
    backend: the backend for ops, "reference" or "auto".
    prepare: the engine itself.
    others:  engine name -> why it does not run here.
    """

    name: str
    backend: str
    prepare: Prepare
    others: dict[str, str]


def unsupported(name: str, device: torch.device) -> str | None:
    """Why the engine cannot run on this device, or None if it can."""
    if name in ("auto", "reference"):
        return None
    if name == "cuda_graph" and device.type != "cuda":
        return f"it needs a CUDA device, the chain is on {device}"
    if name == "cpu" and device.type != "cpu":
        return f"it runs on the CPU, the chain is on {device}"
    return "it is not built yet in this version"


def select(name: str, device: torch.device) -> Selection:
    """The engine for ``name`` on ``device``; ValueError with the reason if that one cannot run."""
    if name not in ENGINES:
        raise ValueError(f"engine is one of {', '.join(ENGINES)}; got {name!r}")
    reason = unsupported(name, device)
    if reason is not None:
        raise ValueError(f"engine {name!r} cannot run: {reason}; 'auto' and 'reference' can")
    others = {
        other: why
        for other in ENGINES
        if other != name and (why := unsupported(other, device)) is not None
    }
    if name == "reference":
        return Selection("reference", "reference", eager.prepare, others)
    return Selection("eager", "auto", eager.prepare, others)
