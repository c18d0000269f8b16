"""A program in the C++ library: made once, run without Python."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence

from torch import Tensor

from fastddpm.ops.library import cpu_library
from fastddpm.ops.program_abi import Arguments, instruction_array


class NativeProgram:
    """The code of a program on a team of threads of its own.

    It keeps addresses: who runs it keeps alive what they point to.
    """

    def __init__(self, code: Sequence[Arguments], threads: int) -> None:
        library = cpu_library()
        status = ctypes.c_int32()
        assert library.handle is not None
        self._library = library.handle
        self._program = self._library.fastddpm_program_create(
            instruction_array(list(code)), len(code), threads, ctypes.byref(status)
        )
        library.check("fastddpm_program_create", status.value)
        self.threads = threads
        weakref.finalize(self, self._library.fastddpm_program_destroy, self._program)

    @property
    def scratch_bytes(self) -> int:
        """Memory that its kernels use inside an instruction."""
        return int(self._library.fastddpm_program_scratch_bytes(self._program))

    def run(self, index: Tensor, steps: int, seconds: float) -> int:
        """Take up to ``steps`` steps, the first at the index int64 [1], which counts down; none is
        begun after so many seconds. Returns how many were taken, at least 1."""
        taken = self._library.fastddpm_program_run(self._program, index.data_ptr(), steps, seconds)
        if taken < 0:
            raise RuntimeError("a forked process got no threads to run the CPU program")
        return int(taken)

    def profile(self, index: Tensor, seconds: Tensor) -> None:
        """Take one step, and add the time of each instruction to seconds, float64 [count]."""
        self._library.fastddpm_program_profile(self._program, index.data_ptr(), seconds.data_ptr())
