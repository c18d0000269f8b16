"""The list of checks for a device, and why some cannot run on it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch

from fastddpm.engine import select
from fastddpm.engine.selection import unsupported
from fastddpm.ops import torch_normal
from fastddpm.ops.backends import interpreting
from fastddpm.ops.library import cpu_library
from fastddpm.selfcheck import convolutions, engines, exact, norms
from fastddpm.selfcheck.outcome import Check, Outcome, not_run

# What the engines run: the model, so many of its steps (None: all), and with which batch sizes.
CPU_CHAINS = {
    "auto": ("mnist", 40, (3, 2)),
    "compile": ("small", 100, (3,)),
    "cpu": ("mnist", 40, (3, 2)),
}
GPU_CHAINS = {"compile": ("mnist", None, (3,)), "cuda_graph": ("mnist", None, (3, 2))}
Compare = Callable[[str, torch.device], Outcome]
EXACT: dict[str, Compare] = {
    "normal": exact.normal,
    "ancestral_step": exact.ancestral_step,
    "q_sample": exact.q_sample,
}


def all_checks(device: torch.device, *, quick: bool = False) -> list[Check]:
    """Every check of every kernel and engine; those that cannot run here say why.

    device: where the Triton kernels and the engines run; the C++ kernels run on the CPU.
    quick: leave out the engines in half precision, which compile the model anew.
    """
    return [*kernel_checks(device), *engine_checks(device, quick=quick)]


def reference_hashes() -> dict[str, str]:
    """SHA-256 of what the reference gives on the CPU for every bit-exact kernel, by its name."""
    outcomes = {name: kernel("reference", torch.device("cpu")) for name, kernel in EXACT.items()}
    return {name: outcome.sha256 or "" for name, outcome in outcomes.items()}


def kernel_checks(device: torch.device) -> list[Check]:
    """Each kernel against its reference, on every case of its cases.py."""
    library = cpu_library()
    no_library = library.reason if library.handle is None else None
    on_gpu = device.type == "cuda" or interpreting()
    no_gpu = None if on_gpu else "it needs a CUDA device"
    return [
        *_backend("cpu", torch.device("cpu"), EXACT, no_library),
        _torch_normal(),
        *_backend("triton", device, EXACT | norms.KERNELS | convolutions.KERNELS, no_gpu),
    ]


def engine_checks(device: torch.device, *, quick: bool = False) -> list[Check]:
    """Each engine against the reference engine."""
    chains_here = GPU_CHAINS if device.type == "cuda" else CPU_CHAINS
    found = []
    for engine in ("auto", "cuda_graph", "compile", "cpu"):
        name, why = f"engine {engine}", unsupported(engine, device)
        if why is None and engine not in chains_here:
            why = f"here it is engine {select(engine, device).name}"
        if why is not None:
            found.append(not_run(name, why))
            continue
        found.append(
            Check(name, functools.partial(engines.chain, engine, device, *chains_here[engine]))
        )
        if engine == "cpu":
            found += _programs(device)
            continue
        found.append(
            Check(f"batch splits, {name}", functools.partial(engines.splitting, engine, device))
        )
        if device.type == "cuda" and not quick:
            found += _half_precision(engine, device)
    return found


def _backend(
    backend: str, device: torch.device, kernels: dict[str, Compare], missing: str | None
) -> Iterator[Check]:
    for kernel, compare in kernels.items():
        name = f"{kernel}, {backend}"
        if missing is not None:
            yield not_run(name, missing)
        else:
            yield Check(name, functools.partial(compare, backend, device))


def _torch_normal() -> Check:
    name, missing = "torch_normal, cpu", torch_normal.unsupported()
    # Its results are this torch's, so they have no reference that is the same everywhere.
    return not_run(name, "; ".join(missing)) if missing else Check(name, exact.torch_normal)


def _programs(device: torch.device) -> Iterator[Check]:
    """What only programs are: other instructions, and the same bits for networks, too."""
    small = functools.partial(engines.chain, "cpu", device, "small", 100, (3,))
    yield Check("a small network, engine cpu", small)
    yield Check("batch splits, engine cpu", functools.partial(engines.splitting_networks, device))


def _half_precision(engine: str, device: torch.device) -> Iterator[Check]:
    for dtype in (torch.bfloat16, torch.float16):
        name = f"engine {engine} in {str(dtype).removeprefix('torch.')}"
        yield Check(name, functools.partial(engines.half_precision_chain, engine, device, dtype))
