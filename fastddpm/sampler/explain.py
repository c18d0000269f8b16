"""Which engine and kernels run, in words."""

from __future__ import annotations

import torch

from fastddpm import ops
from fastddpm.engine import Selection

ENGINES = {
    "reference": "the plain loop, one Python call per step, with the reference ops",
    "eager": "the plain loop, one Python call per step",
}


def explain(engine: Selection, device: torch.device, dtype: torch.dtype) -> str:
    """One line for what runs, one for the kernels, and one for each engine that cannot."""
    if engine.backend == "reference":
        kernels = "reference, in plain torch"
    elif device.type == "cpu":
        kernels = ops.cpu_library_status()
    else:
        kernels = f"reference, in plain torch: there are no kernels for {device.type} yet"
    lines = [
        f"engine: {engine.name} ({ENGINES[engine.name]})",
        f"network: {str(dtype).removeprefix('torch.')} on {device}; chain state: float32",
        f"noise and step kernels: {kernels}",
    ]
    lines += [f"not {name}: {reason}" for name, reason in engine.others.items()]
    return "\n".join(lines)
