"""The captured program's part of the C ABI in ctypes; kernels/include/fastddpm.h documents it.

Every struct of an instruction names its code in ``op``. Addresses are plain numbers: whoever fills
a struct keeps the memory alive.
"""

from __future__ import annotations

import ctypes
from enum import IntEnum
from typing import ClassVar

# Floats: a map's stride and a norm's width are multiples of it. Buffers are aligned to 64 bytes.
ALIGN = 16
ALIGN_BYTES = 64


class Prediction(IntEnum):
    OTHER = 0
    PREVIOUS_SAMPLE = 1
    EPSILON_IN_X = 2

    @classmethod
    def of(cls, name: str) -> Prediction:
        """The code of a step's prediction."""
        return cls.__members__.get(name.upper(), cls.OTHER)


class Variance(IntEnum):
    FIXED = 0
    LEARNED = 1
    LEARNED_RANGE = 2


class Activation(IntEnum):
    NONE = 0
    SILU = 1


class Resample(IntEnum):
    NONE = 0
    HALVE = 1
    DOUBLE = 2


class Packing(IntEnum):
    FLOAT32 = 0
    FLOAT16 = 1
    TRANSFORMED = 2


class Op(IntEnum):
    CONV3X3 = 0
    CONVOLUTION = 1
    ATTENTION = 2
    STATISTICS = 3
    NORM = 4
    POINTWISE = 5
    LAYOUT = 6
    STEP = 7
    CALL = 8


_pointer = ctypes.c_void_p
_int64 = ctypes.c_int64
_int32 = ctypes.c_int32
_double = ctypes.c_double


class Input(ctypes.Structure):
    """One map or two joined by channels, normalised and activated while they are read."""

    _fields_ = (
        ("data", _pointer * 2),
        ("stride", _int64 * 2),
        ("channels", _int64 * 2),
        ("norm", _pointer),
        ("activation", _int64),
    )


class Row(ctypes.Structure):
    """Numbers that every pixel of a sample shares."""

    _fields_ = (("data", _pointer), ("sample_stride", _int64), ("step_stride", _int64))


class Output(ctypes.Structure):
    """(value + bias + row + residual) / divisor; the divisor must be set, 1.0 for none."""

    _fields_ = (
        ("data", _pointer),
        ("stride", _int64),
        ("channels", _int64),
        ("bias", _pointer),
        ("row", Row),
        ("residual", _pointer),
        ("residual_stride", _int64),
        ("divisor", _double),
        ("statistics", _pointer),
    )


class Arguments(ctypes.Structure):
    """What one instruction is told; ``op`` is its code."""

    op: ClassVar[Op]


class Conv3x3(Arguments):
    op = Op.CONV3X3
    _fields_ = (
        ("x", Input),
        ("y", Output),
        ("batch", _int64),
        ("height", _int64),
        ("width", _int64),
        ("doubled", _int64),
        ("weights", _pointer),
        ("packing", _int64),
    )


class Convolution(Arguments):
    op = Op.CONVOLUTION
    _fields_ = (
        ("x", Input),
        ("y", Output),
        ("batch", _int64),
        ("height", _int64),
        ("width", _int64),
        ("input_height", _int64),
        ("input_width", _int64),
        ("kernel", _int64),
        ("stride", _int64),
        ("padding", _int64),
        ("weights", _pointer),
        ("packing", _int64),
    )


class Attention(Arguments):
    op = Op.ATTENTION
    _fields_ = (
        ("q", _pointer),
        ("k", _pointer),
        ("v", _pointer),
        ("q_stride", _int64),
        ("k_stride", _int64),
        ("v_stride", _int64),
        ("y", Output),
        ("batch", _int64),
        ("tokens", _int64),
        ("heads", _int64),
        ("head_dim", _int64),
        ("scale", _double),
    )


class Statistics(Arguments):
    op = Op.STATISTICS
    _fields_ = (
        ("data", _pointer),
        ("stride", _int64),
        ("channels", _int64),
        ("batch", _int64),
        ("height", _int64),
        ("width", _int64),
        ("statistics", _pointer),
    )


class Norm(Arguments):
    op = Op.NORM
    _fields_ = (
        ("statistics", _pointer * 2),
        ("stride", _int64 * 2),
        ("channels", _int64 * 2),
        ("batch", _int64),
        ("height", _int64),
        ("width", _int64),
        ("groups", _int64),
        ("eps", _double),
        ("weight", _pointer),
        ("bias", _pointer),
        ("modulation", Row),
        ("norm", _pointer),
    )


class Pointwise(Arguments):
    op = Op.POINTWISE
    _fields_ = (
        ("x", Input),
        ("y", Output),
        ("batch", _int64),
        ("height", _int64),
        ("width", _int64),
        ("resample", _int64),
    )


class Layout(Arguments):
    op = Op.LAYOUT
    _fields_ = (
        ("to", _pointer),
        ("from", _pointer),  # a keyword of Python: Layout(**{"from": ...})
        ("stride", _int64),
        ("batch", _int64),
        ("channels", _int64),
        ("pixels", _int64),
        ("into_map", _int64),
        ("factor", _double),
        ("offset", _double),
        ("divisor", Row),
    )


class Step(Arguments):
    op = Op.STEP
    _fields_ = (
        ("x", _pointer),
        ("x_0", _pointer),
        ("model_output", _pointer),
        ("noise", _pointer),
        ("table", _pointer),
        ("batch", _int64),
        ("elements", _int64),
        ("prediction", _int64),
        ("variance", _int64),
        ("clip", _double),
        ("seed", _pointer),
        ("indices", _pointer),
        ("timesteps", _pointer),
        ("first_nonfinite", _pointer),
    )


class Call(Arguments):
    op = Op.CALL
    _fields_ = (("function", _pointer), ("context", _pointer))


class Instruction(ctypes.Structure):
    _fields_ = (("op", _int64), ("arguments", _pointer))


def instruction_array(code: list[Arguments]) -> ctypes.Array[Instruction]:
    """The code as fastddpm_program_create takes it; the structs must live until that returns."""
    made = [Instruction(arguments.op, ctypes.addressof(arguments)) for arguments in code]
    return (Instruction * len(code))(*made)


# Every function: what it returns, and its arguments.
FUNCTIONS: dict[str, tuple[type | None, list[type]]] = {
    "fastddpm_packed_conv3x3_bytes": (_int64, [_int64, _int64, _int64]),
    "fastddpm_packed_convolution_bytes": (_int64, [_int64, _int64, _int64, _int64]),
    "fastddpm_pack_conv3x3": (_int32, [_pointer, _pointer, _int64, _int64, _int64]),
    "fastddpm_pack_convolution": (_int32, [_pointer, _pointer, _int64, _int64, _int64, _int64]),
    "fastddpm_program_create": (_pointer, [_pointer, _int64, _int32, _pointer]),
    "fastddpm_program_destroy": (None, [_pointer]),
    "fastddpm_program_scratch_bytes": (_int64, [_pointer]),
    "fastddpm_program_run": (_int64, [_pointer, _pointer, _int64, _double]),
    "fastddpm_program_profile": (_int64, [_pointer, _pointer, _pointer]),
}
