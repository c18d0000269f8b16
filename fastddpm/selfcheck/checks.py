"""The list of checks for a device, and why some cannot run on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from fastddpm import engine as engines
from fastddpm.engine.selection import unsupported
from fastddpm.ops.backends import interpreting
from fastddpm.ops.library import cpu_library
from fastddpm.selfcheck import engines as chains
from fastddpm.selfcheck import exact, norms
from fastddpm.selfcheck.outcome import Check, Outcome, not_run

# What the engines run on a CPU; on a GPU it is the whole chain of the built-in model.
CPU_CHAINS = {"auto": ("mnist", 40), "compile": ("small", 100)}
EXACT = {
    "normal": exact.normal,
    "ancestral_step": exact.ancestral_step,
    "ancestral_step with learned variances": exact.learned_step,
    "q_sample": exact.q_sample,
}


def all_checks(device: torch.device) -> list[Check]:
    """Every check of every kernel and engine, those that cannot run on ``device`` among them."""
    return [*kernel_checks(device), *engine_checks(device)]


def kernel_checks(device: torch.device) -> list[Check]:
    """Each kernel against its reference, on every case of its cases.py."""
    return [*_backend("cpu", device), *_backend("triton", device)]


def engine_checks(device: torch.device) -> list[Check]:
    """Each engine against the reference engine."""
    return list(_engines(device))


def backend_missing(backend: str, device: torch.device) -> str | None:
    """Why a backend's kernels cannot run on the device, or None if they can."""
    if backend == "cpu":
        if device.type != "cpu":
            return "its kernels run on a CPU"
        return cpu_library().reason if cpu_library().handle is None else None
    if device.type == "cuda" or interpreting():
        return None
    return "its kernels need a CUDA device"


def _backend(backend: str, device: torch.device) -> Iterator[Check]:
    kernels: dict[str, Callable[[str, torch.device], Outcome]] = dict(EXACT)
    if backend == "triton":
        kernels |= norms.KERNELS
    why = backend_missing(backend, device)
    for kernel, compare in kernels.items():
        name = f"{kernel}, {backend}"
        if why is not None:
            yield not_run(name, why)
        else:
            yield Check(name, lambda compare=compare: compare(backend, device))  # type: ignore[misc]


def _engines(device: torch.device) -> Iterator[Check]:
    for engine in engines.ENGINES:
        if engine == "reference":
            continue
        name, why = f"engine {engine}", unsupported(engine, device)
        if why is not None:
            yield not_run(name, why)
            continue
        of = ("mnist", None) if device.type == "cuda" else CPU_CHAINS[engine]
        yield Check(name, lambda e=engine, of=of: chains.chain(e, device, *of))  # type: ignore[misc]
        split = f"batch splits, engine {engine}"
        yield Check(split, lambda e=engine: chains.splitting(e, device))  # type: ignore[misc]
        if device.type == "cuda":
            yield from _half_precision(engine, device)


def _half_precision(engine: str, device: torch.device) -> Iterator[Check]:
    for dtype in (torch.bfloat16, torch.float16):
        name = f"engine {engine} in {str(dtype).removeprefix('torch.')}"
        yield Check(
            name,
            lambda d=dtype: chains.half_precision_chain(engine, device, d),  # type: ignore[misc]
        )
