"""Single instructions of the CPU program, run through the C ABI: what the kernels' tests share.

Maps are made as the program lays them out: channels last, strides of whole vectors, 64-byte
aligned. What no pixel owns, the lanes beyond the channels and a border around each buffer, holds a
NaN of its own, so that a kernel which reads it shows, and one which writes the border is caught.
"""

from __future__ import annotations

import ctypes
import math
from typing import NamedTuple

import torch
from op_backends import LIBRARY
from torch import Tensor

from fastddpm.ops.program_abi import (
    ALIGN,
    ALIGN_BYTES,
    Activation,
    Arguments,
    Input,
    Output,
    Packing,
    Row,
    instruction_array,
)

NO_NUMBER = 0x7FC0BEEF  # the bits of a NaN that no arithmetic makes
BORDER = 64  # floats before and after each buffer


class Buffer:
    """`count` aligned floats inside a border; all hold NO_NUMBER at first."""

    def __init__(self, count: int) -> None:
        bits = torch.full((count + 2 * BORDER + ALIGN,), NO_NUMBER, dtype=torch.int32)
        first = BORDER + -(bits.data_ptr() // 4 + BORDER) % ALIGN
        self._bits, self._first, self.count = bits, first, count
        self.numbers = bits.view(torch.float32)[first : first + count]  # [count], writable
        assert self.address % ALIGN_BYTES == 0

    @property
    def address(self) -> int:
        return self.numbers.data_ptr()

    def check_border(self) -> None:
        """AssertionError if anything has been written outside of the buffer."""
        before, after = self._bits[: self._first], self._bits[self._first + self.count :]
        assert (before == NO_NUMBER).all(), "written before the buffer's begin"
        assert (after == NO_NUMBER).all(), "written beyond the buffer's end"


class Map(NamedTuple):
    """A feature map [B, *spatial, C] in a buffer, its pixels `stride` floats apart."""

    buffer: Buffer
    stride: int
    channels: int
    shape: tuple[int, ...]  # (B, H, W) or (B, N)

    @property
    def address(self) -> int:
        return self.buffer.address

    @property
    def pixels(self) -> Tensor:
        """All that the map's memory holds, [B H W, stride], writable."""
        return self.buffer.numbers.view(-1, self.stride)


def aligned(count: int) -> int:
    """The next multiple of ALIGN."""
    return -(-count // ALIGN) * ALIGN


def empty_map(batch: int, channels: int, *spatial: int, stride: int | None = None) -> Map:
    """A map to be written. stride: of a pixel, by default the smallest allowed."""
    stride = aligned(channels) if stride is None else stride
    shape = (batch, *spatial)
    return Map(Buffer(math.prod(shape) * stride), stride, channels, shape)


def as_map(x: Tensor, stride: int | None = None) -> Map:
    """The map of x, [B, C, H, W] or [B, N, C]."""
    last = x.movedim(1, -1) if x.ndim == 4 else x
    made = empty_map(last.shape[0], last.shape[-1], *last.shape[1:-1], stride=stride)
    made.pixels[:, : made.channels] = last.reshape(-1, made.channels).float()
    return made


def from_map(given: Map) -> Tensor:
    """A copy, [B, C, H, W] or [B, N, C]; fails if the map's border has been written to."""
    given.buffer.check_border()
    numbers = given.pixels[:, : given.channels].reshape(*given.shape, given.channels)
    return numbers.movedim(-1, 1).contiguous() if len(given.shape) == 3 else numbers.clone()


def as_buffer(values: Tensor) -> Buffer:
    """The values in their order: a bias, a norm [B, 3, S], a map in torch's order."""
    made = Buffer(values.numel())
    made.numbers.copy_(values.reshape(-1))
    return made


def reads(
    *maps: Map, norm: Buffer | None = None, activation: Activation = Activation.NONE
) -> Input:
    """One map, or two joined by channels. The caller keeps maps and norm alive."""
    first, second = maps[0], maps[1] if len(maps) > 1 else None
    return Input(
        data=(first.address, None if second is None else second.address),
        stride=(first.stride, 0 if second is None else second.stride),
        channels=(first.channels, 0 if second is None else second.channels),
        norm=None if norm is None else norm.address,
        activation=activation,
    )


def row(values: Buffer, sample_stride: int, step_stride: int = 0) -> Row:
    """Numbers that the pixels of a sample share. The caller keeps the buffer alive."""
    return Row(values.address, sample_stride, step_stride)


def writes(
    to: Map,
    *,
    bias: Buffer | None = None,
    row: Row | None = None,
    residual: Map | None = None,
    divisor: float = 1.0,
    statistics: Buffer | None = None,
) -> Output:
    """What is written to a map. The caller keeps the buffers alive."""
    return Output(
        data=to.address,
        stride=to.stride,
        channels=to.channels,
        bias=None if bias is None else bias.address,
        row=Row() if row is None else row,
        residual=None if residual is None else residual.address,
        residual_stride=0 if residual is None else residual.stride,
        divisor=divisor,
        statistics=None if statistics is None else statistics.address,
    )


def empty_statistics(like: Map) -> Buffer:
    """For the statistics of a map [B, H, W, C]: [B, strips, 2, stride]."""
    batch, height, _ = like.shape
    return Buffer(batch * -(-height // 4) * 2 * like.stride)


def pack_conv3x3(weight: Tensor, packing: Packing = Packing.FLOAT32) -> Buffer:
    """weight [out, in, 3, 3] as fastddpm_conv3x3 reads it, for the instruction set in use."""
    return _pack("conv3x3", weight, weight.shape[:2], packing)


def pack_convolution(weight: Tensor, packing: Packing = Packing.FLOAT32) -> Buffer:
    """weight [out, in, k, k] as fastddpm_convolution reads it, for the instruction set in use."""
    return _pack("convolution", weight, weight.shape[:3], packing)


def _pack(kind: str, weight: Tensor, sizes: torch.Size, packing: Packing) -> Buffer:
    assert LIBRARY.handle is not None
    count = getattr(LIBRARY.handle, f"fastddpm_packed_{kind}_bytes")(*sizes, packing)
    assert count >= 0, "arguments that make no sense"
    packed = Buffer(-(-count // 4))
    given = weight.float().contiguous()
    LIBRARY.call(f"fastddpm_pack_{kind}", packed.address, given.data_ptr(), *sizes, packing)
    packed.check_border()
    return packed


def run(*code: Arguments, threads: int = 1, step: int = 0, steps: int = 1) -> None:
    """Make a program of these instructions, replay it for steps, step - 1, ..., and destroy it."""
    handle = LIBRARY.handle
    assert handle is not None
    status = ctypes.c_int32(-1)
    instructions = instruction_array(list(code))
    program = handle.fastddpm_program_create(instructions, len(code), threads, ctypes.byref(status))
    assert status.value == 0 and program, handle.fastddpm_error_message(status.value)
    index = ctypes.c_int64(step)
    try:
        taken = handle.fastddpm_program_run(program, ctypes.byref(index), steps, 1e9)
    finally:
        handle.fastddpm_program_destroy(program)
    assert taken == steps and index.value == step - steps


def assert_as_accurate(ours: Tensor, torchs: Tensor, exact: Tensor) -> None:
    """Our relative error, in the Euclidean norm, is at most twice that of torch in float32.

    Not less than half an ulp is asked for, where torch is exact by luck.
    """
    error, theirs = ((v.double() - exact).norm() for v in (ours, torchs))
    allowed = 2 * max(theirs, 2.0**-24 * exact.norm())
    assert error <= allowed, f"off by {error:.2e}, at most {allowed:.2e} is torch's accuracy"
