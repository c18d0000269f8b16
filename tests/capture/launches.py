"""Kernel launches of a captured step, counted from its recorded calls.

    views and empty memory                  0
    a convolution with a bias               2   (cuDNN's kernel, then the bias)
    an op of the namespace fastddpm         KERNELS, else 1
    a compiled step                         1   (opaque: what Inductor made of it is not seen)
    everything else                         1

The last is a lower bound: torch's own group_norm, for one, takes several kernels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from capture.device import Graph
from capture.recording import Call
from fastddpm.kernels.group_norm_silu.tiling import one_pass_tile


def _group_norm(args: dict[str, Any]) -> int:
    """One pass where a block of groups fits a program; statistics and their use elsewhere."""
    x, skip = args["x"], args["skip"]
    channels = x.shape[1] + (0 if skip is None else skip.shape[1])
    sizes = (x.shape[2:].numel(), channels, args["num_groups"], x.element_size())
    return 2 if one_pass_tile(*sizes) is None else 1


# Kernels of an op by its arguments; the ops that are not here are one kernel each.
KERNELS: dict[str, Callable[[dict[str, Any]], int]] = {"group_norm_silu": _group_norm}


def launches(graph: Graph) -> Counter[str]:
    """Launches of one replay by op name; ``.total()`` is their number."""
    counted: Counter[str] = Counter()
    for call in graph.recording.calls:
        if not call.is_silent:
            counted[call.name] += _count(call)
    return counted


def _count(call: Call) -> int:
    namespace, _, name = call.name.partition("::")
    if namespace == "fastddpm" and name in KERNELS:
        arguments = [argument.name for argument in call.func._schema.arguments]
        return KERNELS[name](dict(zip(arguments, call.args, strict=False)) | call.kwargs)
    return 2 if name == "convolution" and call.args[2] is not None else 1
