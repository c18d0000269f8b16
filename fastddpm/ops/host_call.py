"""A function of tensors inside a step: called as it is, or as one op of a recorded step.

torch.compile and a CUDA graph trace through the function. A recorded program has no instruction for
what it does; it calls it between two instructions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastddpm.ops.recording import is_recording
from fastddpm.ops.registry import register

Function = Callable[..., None]

# Functions that are being recorded, by the number that stands for them in the op's arguments.
_functions: dict[int, Function] = {}


def host_call_(function: Function, *tensors: Tensor) -> None:
    """function(*tensors), which may write into them and returns nothing.

    While a step is recorded the tensors, but for the state, are those that the step holds.
    """
    if not is_recording():
        function(*tensors)
        return
    number = id(function)
    _functions[number] = function
    HOST_CALL(list(tensors), number)


def recorded_function(number: int) -> Function:
    """The function of a recorded op, once: whoever asks keeps it."""
    return _functions.pop(number)


def _run(tensors: list[Tensor], number: int) -> None:
    _functions[number](*tensors)


def _fake(tensors: list[Tensor], number: int) -> None:
    """Everything is written in place."""


HOST_CALL: torch._ops.OpOverload = register(
    "host_call_(Tensor(a!)[] tensors, int number) -> ()", _run, _fake
)
