"""Functions of torch that a program calls between two instructions."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastddpm.ops.program_abi import Call

_NATIVE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)


class HostCall:
    """function(*tensors) as an instruction; whoever runs the program keeps it alive.

    The library cannot pass on what the function raises: it is kept, the function is not called
    again, and ``check`` raises it.
    """

    def __init__(self, function: Callable[..., None], tensors: Sequence[Tensor]) -> None:
        self._function = function
        self._tensors = tuple(tensors)
        self._error: BaseException | None = None
        self._native = _NATIVE(self._run)

    @property
    def instruction(self) -> Call:
        """That instruction."""
        return Call(function=ctypes.cast(self._native, ctypes.c_void_p), context=None)

    def check(self) -> None:
        """Raise what the function has raised, once."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self, context: int | None, step: int) -> None:
        if self._error is not None:
            return
        try:
            with torch.no_grad():
                self._function(*self._tensors)
        # Whatever it is, an interrupt too: passing through the library it would be lost.
        except BaseException as error:  # noqa: BLE001
            self._error = error
