"""libfastddpm_cpu: finding it, loading it through ctypes, and saying why there is none.

The C ABI is kernels/include/fastddpm.h. The library is optional; nothing here touches it before
the first op that may use it. FASTDDPM_CPU_ISA=baseline|avx2|avx512 forces an instruction set lower
than the best one; it is read here, once, and nowhere else.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.resources
import os
import sys
from dataclasses import dataclass

import torch
from torch import Tensor

from fastddpm.ops import program_abi

ABI_VERSION = 4
LIBRARY_NAME = "libfastddpm_cpu" + (".dylib" if sys.platform == "darwin" else ".so")
ISA_VARIABLE = "FASTDDPM_CPU_ISA"

_pointer = ctypes.c_void_p
_int64 = ctypes.c_int64
_int32 = ctypes.c_int32
_uint64 = ctypes.c_uint64

# Argument types of the functions outside of the program that return a status, as in fastddpm.h.
_SIGNATURES: dict[str, list[type]] = {
    "fastddpm_use_isa": [ctypes.c_char_p],
    "fastddpm_normal": [
        *[_pointer, _pointer, _int64, _int64, _uint64],
        *[_pointer, _int64, _int32, _int32],
    ],
    "fastddpm_torch_normal": [_pointer, _int64, _pointer],
    "fastddpm_ancestral_step": [
        *[_pointer, _pointer, _pointer, _pointer, _pointer, _pointer, _int64, _pointer],
        *[_int64, _int64, _int32, _int32, ctypes.c_float],
        *[_uint64, _pointer, _pointer, _int32],
    ],
    "fastddpm_q_sample": [
        *[_pointer, _pointer, _pointer, _pointer, _pointer, _int64, _pointer],
        *[_int64, _int64, _uint64, _pointer, _int64, _int32],
    ],
}


@dataclass(frozen=True)
class CpuLibrary:
    """The loaded library, or the reason why there is none."""

    handle: ctypes.CDLL | None
    reason: str = ""

    @property
    def isa(self) -> str:
        """The instruction set in use."""
        return str(self._loaded().fastddpm_isa_name().decode())

    @property
    def isas(self) -> tuple[str, ...]:
        """All instruction sets that the library holds and this CPU runs, worst first."""
        return tuple(self._loaded().fastddpm_isa_list().decode().split())

    def call(self, name: str, *arguments: object) -> None:
        """Call a function that returns a status; RuntimeError with its message if it is not 0."""
        self.check(name, getattr(self._loaded(), name)(*arguments))

    def check(self, name: str, status: int) -> None:
        """RuntimeError with its message for the status of the function ``name`` if it is not 0."""
        if status != 0:
            message = self._loaded().fastddpm_error_message(status).decode()
            raise RuntimeError(f"{name}: {message}")

    def use_isa(self, name: str) -> None:
        """Switch to another instruction set; ValueError if it is not one of `isas`."""
        if name not in self.isas:
            raise ValueError(f"instruction set: expected one of {self.isas}, got {name!r}")
        self.call("fastddpm_use_isa", name.encode())

    def _loaded(self) -> ctypes.CDLL:
        if self.handle is None:
            raise RuntimeError(self.reason)
        return self.handle


@functools.cache
def cpu_library() -> CpuLibrary:
    """Load the library at the first call.

    Raises:
        ValueError: FASTDDPM_CPU_ISA names an instruction set that cannot run here.
    """
    file = importlib.resources.files("fastddpm") / LIBRARY_NAME
    if not file.is_file():
        return CpuLibrary(
            None,
            f"{LIBRARY_NAME} is not installed: the package was built without a C++ compiler. "
            "Install g++ or clang++ and run `pip install .` again",
        )
    try:
        handle = ctypes.CDLL(str(file))
    except OSError as error:
        return CpuLibrary(None, f"{LIBRARY_NAME} does not load: {error}")
    version = handle.fastddpm_abi_version()
    if version != ABI_VERSION:
        return CpuLibrary(
            None,
            f"{LIBRARY_NAME} has ABI version {version}, this package needs {ABI_VERSION}: "
            "install again",
        )
    library = CpuLibrary(_declare(handle))
    isa = os.environ.get(ISA_VARIABLE)
    if isa:
        if isa not in library.isas:
            raise ValueError(f"{ISA_VARIABLE}: expected one of {library.isas}, got {isa!r}")
        library.use_isa(isa)
    return library


def cpu_library_status() -> str:
    """One line for people: which instruction set runs, or what is missing and what that costs."""
    library = cpu_library()
    if library.handle is None:
        return f"no CPU library: {library.reason}. The plain PyTorch path runs instead, slower"
    return f"{LIBRARY_NAME}, ABI {ABI_VERSION}, uses {library.isa} of {', '.join(library.isas)}"


def unsupported_tensors(tensors: dict[str, Tensor]) -> list[str]:
    """Why the CPU library cannot take these tensors, float32 ones or int64 indices."""
    reasons = []
    for name, tensor in tensors.items():
        if tensor.device.type != "cpu":
            reasons.append(f"{name} is on {tensor.device}, not on the CPU")
        if tensor.dtype not in (torch.float32, torch.int64):
            reasons.append(f"{name} is {tensor.dtype}, not float32")
        if tensor.requires_grad and torch.is_grad_enabled():
            reasons.append(f"{name} needs a gradient")
    if cpu_library().handle is None:
        reasons.append(cpu_library().reason)
    return reasons


def _declare(handle: ctypes.CDLL) -> ctypes.CDLL:
    for name, arguments in _SIGNATURES.items():
        function = getattr(handle, name)
        function.argtypes = arguments
        function.restype = _int32
    for name, (result, arguments) in program_abi.FUNCTIONS.items():
        function = getattr(handle, name)
        function.argtypes = arguments
        function.restype = result
    for name in ("fastddpm_isa_name", "fastddpm_isa_list", "fastddpm_error_message"):
        getattr(handle, name).restype = ctypes.c_char_p
    return handle
