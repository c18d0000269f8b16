"""Which implementation of an op runs: "triton" on a GPU, "cpu" (the C++ library), "reference".

A backend asked for by name is used or refused with its reasons; "auto" takes the kernel of the
tensors' device if that supports the call, else the reference.
"""

from __future__ import annotations

import functools
import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

BACKENDS = ("auto", "reference", "cpu", "triton")
# The kernels that "auto" takes on each type of device.
OF_DEVICE = {"cpu": "cpu", "cuda": "triton"}


class _Asked(threading.local):
    """What `using` asks for on this thread. torch.compile guards on it, as on no ContextVar."""

    backend = "auto"


_asked = _Asked()


@contextmanager
def using(backend: str) -> Iterator[None]:
    """Inside, on this thread, a call that leaves its backend at "auto" asks for this one by name.

    Raises:
        ValueError: an unknown backend.
    """
    _check_name(backend)
    before = _asked.backend
    _asked.backend = backend
    try:
        yield
    finally:
        _asked.backend = before


def asked(backend: str) -> str:
    """The backend that a call asks for: its own, or that of `using` if its own is "auto".

    A registered op is given this, so that the choice travels into its backward on other threads.
    """
    return _asked.backend if backend == "auto" else backend


def kernels_of(device: torch.device) -> str:
    """The backend that "auto" tries first for tensors on this device."""
    backend = asked("auto")
    return OF_DEVICE.get(device.type, "reference") if backend == "auto" else backend


def choose_backend(
    op: str, backend: str, device: torch.device, reasons: Mapping[str, Sequence[str]]
) -> str:
    """Which backend runs.

    Args:
        op: its name, for messages.
        backend: one of BACKENDS.
        device: where the tensors are.
        reasons: for each backend that the op has besides the reference, why it cannot run this
            call; empty if it can.

    Raises:
        ValueError: an unknown backend, one that the op does not have, or one asked for by name
            that cannot run this call.
    """
    _check_name(backend)
    backend = asked(backend)
    if backend == "auto":
        own = kernels_of(device)
        return own if own in reasons and not reasons[own] else "reference"
    if backend == "reference":
        return backend
    why = reasons.get(backend, [f"{op} has no such kernel"])
    if why:
        raise ValueError(f"{op}: backend {backend!r} cannot run this call: {'; '.join(why)}")
    return backend


def _check_name(backend: str) -> None:
    if backend not in BACKENDS:
        names = ", ".join(map(repr, BACKENDS[:-1]))
        raise ValueError(f"backend: expected {names} or {BACKENDS[-1]!r}, got {backend!r}")


def triton_unsupported(tensors: Mapping[str, Tensor | None]) -> list[str]:
    """Why no Triton kernel can run on these tensors, whatever the op."""
    missing = _triton_missing()
    if missing is None and not interpreting():
        missing = _compiler_missing()
    if missing is not None:
        return [missing]
    return [
        f"{name} is on {tensor.device}: Triton kernels run on CUDA devices"
        for name, tensor in tensors.items()
        if tensor is not None and not (tensor.device.type == "cuda" or interpreting())
    ]


def triton_status() -> str:
    """One line for people: whether Triton kernels run here."""
    missing = _triton_missing()
    if missing is not None:
        return f"no Triton kernels: {missing}"
    if interpreting():
        return "Triton's interpreter (TRITON_INTERPRET=1): for tests, slow"
    if not torch.cuda.is_available():
        return "no Triton kernels: no CUDA device"
    lacking = _compiler_missing()
    return "Triton kernels" if lacking is None else f"no Triton kernels: {lacking}"


@functools.cache
def interpreting() -> bool:
    """Whether TRITON_INTERPRET=1 made the kernels run in Triton's interpreter, on any device."""
    if _triton_missing() is not None:
        return False
    import triton

    return bool(triton.knobs.runtime.interpret)


@functools.cache
def _compiler_missing() -> str | None:
    """Why Triton cannot build the host code that launches its kernels, or None."""
    if os.environ.get("CC") or any(map(shutil.which, ("cc", "gcc", "clang"))):
        return None
    return "triton needs a C compiler to launch kernels, and there is no cc, gcc or clang"


@functools.cache
def _triton_missing() -> str | None:
    try:
        import triton
    except ImportError as error:
        return f"triton cannot be imported ({error})"
    return None if hasattr(triton, "jit") else "triton is not installed whole"
