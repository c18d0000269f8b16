"""What each recorded op becomes: one function per op, from the values of its arguments to that of
its result.

A sum is not an instruction where what it adds can go into the instruction that makes one of its
terms; a GroupNorm, an activation, a concatenation or a doubling is how the next instruction reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastddpm.engine.cpu.emitter import Emitter, described
from fastddpm.engine.cpu.values import (
    Constant,
    Divided,
    Feature,
    Index,
    InOrder,
    Norm,
    Read,
    Row,
    Value,
)
from fastddpm.engine.plan import CannotPrepare
from fastddpm.ops.program_abi import Arguments, Conv3x3, Convolution, Output, Resample
from fastddpm.ops.table_row import TABLE_ROW

aten = torch.ops.aten
# From this many input channels on a transformed 3x3 convolution pays.
_TRANSFORMED_FROM = 16

# rule(emitter, free, *arguments) -> value. free: whether nothing but this operation reads the
# features among its arguments, so that it may change what their instructions write.
Rule = Callable[..., Any]
RULES: dict[torch._ops.OpOverload, Rule] = {}


def rule(*ops: torch._ops.OpOverload) -> Callable[[Rule], Rule]:
    """Register the rule for these ops."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(ops, function))
        return function

    return register


def one(weight: Tensor) -> Tensor:
    """The build of weights that are packed as they are."""
    return weight


def columns(weight: Tensor) -> Tensor:
    """The build of a product with a matrix [in, out], as a 1x1 convolution's weights."""
    return weight.t()[:, :, None, None]


# ---- convolutions


@rule(aten.convolution.default)
def convolution(
    emit: Emitter,
    free: Sequence[Any],
    x: Value,
    weight: Constant,
    bias: Constant | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> Feature:
    tensor = _constant(weight)
    kernel, step, pad = tensor.shape[2:], set(stride), set(padding)
    plain = not transposed and groups == 1 and set(dilation) == {1}
    if len(kernel) != 2 or kernel not in ((1, 1), (3, 3)) or not plain:
        raise CannotPrepare(
            f"convolutions are 1x1 or 3x3 in two dimensions, not transposed, dilated or grouped; "
            f"this one has weights {list(tensor.shape)}"
        )
    if len(step) > 1 or len(pad) > 1:
        raise CannotPrepare("a convolution has one stride and one padding for both dimensions")
    return convolve(
        emit,
        emit.read(x),
        (tensor,),
        one,
        None if bias is None else emit.address(_constant(bias)),
        size=int(kernel[0]),
        stride=step.pop(),
        padding=pad.pop(),
    )


def convolve(
    emit: Emitter,
    x: Read,
    sources: Sequence[Tensor],
    build: Callable[..., Tensor],
    bias: int | None,
    *,
    size: int = 1,
    stride: int = 1,
    padding: int = 0,
) -> Feature:
    """The convolution of what is read with the weights build(*sources)."""
    out = int(build(*(source.detach() for source in sources)).shape[0])
    if size == 3 and (stride, padding) == (1, 1) and x.channels >= _TRANSFORMED_FROM:
        return _conv3x3(emit, x, sources, build, bias, out)
    return _convolution(emit, x, sources, build, bias, out, size, stride, padding)


def _conv3x3(
    emit: Emitter,
    x: Read,
    sources: Sequence[Tensor],
    build: Callable[..., Tensor],
    bias: int | None,
    out: int,
) -> Feature:
    x = x if x.padded == (0, 0) else emit.read_plain(x)
    batch, _, height, width = x.shape
    packed = emit.pack("conv3x3", sources, build)

    def make(y: Output) -> Arguments:
        return Conv3x3(
            x=emit.input(x),
            y=y,
            batch=batch,
            height=height,
            width=width,
            doubled=x.doubled,
            weights=packed.address,
            packing=packed.packing,
        )

    return Feature((batch, out, height, width), make, bias=bias)


def _convolution(
    emit: Emitter,
    x: Read,
    sources: Sequence[Tensor],
    build: Callable[..., Tensor],
    bias: int | None,
    out: int,
    size: int,
    stride: int,
    padding: int,
) -> Feature:
    if x.doubled or (padding and x.padded != (0, 0)):
        x = emit.read_plain(x)
    batch = x.shape[0]
    # What lies below and to the right of a map is zero, so padding there only adds outputs.
    height, width = (
        (length + 2 * padding + more - size) // stride + 1
        for length, more in zip(x.source_size, x.padded, strict=True)
    )
    packed = emit.pack("convolution", sources, build)

    def make(y: Output) -> Arguments:
        return Convolution(
            x=emit.input(x),
            y=y,
            batch=batch,
            height=height,
            width=width,
            input_height=x.source_size[0],
            input_width=x.source_size[1],
            kernel=size,
            stride=stride,
            padding=padding,
            weights=packed.address,
            packing=packed.packing,
        )

    return Feature((batch, out, height, width), make, bias=bias)


@rule(aten.addmm.default)
def addmm(
    emit: Emitter, free: Sequence[Any], bias: Constant, x: Value, weight: Constant
) -> Feature:
    own = emit.address(_constant(bias))
    return convolve(emit, emit.read(x), (_constant(weight),), columns, own)


# ---- how the next instruction reads


@rule(aten.native_group_norm.default)
def group_norm(
    emit: Emitter,
    free: Sequence[Any],
    x: Value,
    weight: Constant | None,
    bias: Constant | None,
    batch: int,
    channels: int,
    pixels: int,
    groups: int,
    eps: float,
) -> list[Value | None]:
    own, offset = (None if v is None else emit.address(_constant(v)) for v in (weight, bias))
    read = emit.read_plain(x)
    # The statistics, which it returns besides, are nobody's.
    return [replace(read, norm=Norm(groups, eps, own, offset)), None, None]


@rule(aten.silu.default)
def silu(emit: Emitter, free: Sequence[Any], x: Value) -> Read:
    read = emit.read(x)
    if read.silu or read.padded != (0, 0):
        read = emit.read_plain(read)
    return replace(read, silu=True, written=None)


@rule(aten.cat.default)
def cat(emit: Emitter, free: Sequence[Any], parts: list[Value], dim: int = 0) -> Read:
    if dim != 1:
        raise CannotPrepare("maps are joined by channels")
    maps = [part for value in parts for part in emit.read_plain(value).parts]
    while len(maps) > 2:
        maps[:2] = [emit.map(Read(tuple(maps[:2])))]
    return Read(tuple(maps))


@rule(aten.upsample_nearest2d.default)
def upsample(
    emit: Emitter, free: Sequence[Any], x: Value, size: list[int], *scales: float | None
) -> Read:
    read = emit.read(x)
    if not read.has_no_resampling:
        read = emit.read_plain(read)
    if list(size) != [2 * length for length in read.source_size]:
        raise CannotPrepare(f"maps are enlarged by two, not from {read.source_size} to {size}")
    return replace(read, doubled=True, written=None)


@rule(aten.constant_pad_nd.default)
def pad(
    emit: Emitter, free: Sequence[Any], x: Value, amounts: list[int], value: float = 0.0
) -> Read:
    left, right, top, bottom, *others = [*amounts, 0, 0, 0, 0]
    read = emit.read(x)
    if left or top or any(others) or value or min(right, bottom) < 0 or len(amounts) > 4:
        raise CannotPrepare("maps are padded with zeros below and to the right only")
    if not read.has_no_resampling:
        read = emit.read_plain(read)
    return replace(read, padded=(bottom, right), written=None)


@rule(aten.avg_pool2d.default)
def average(
    emit: Emitter,
    free: Sequence[Any],
    x: Value,
    kernel: list[int],
    stride: list[int] = [],  # noqa: B006 (torch's own default)
    *others: Any,
) -> Feature:
    read = emit.read(x)
    read = read if read.has_no_resampling else emit.read_plain(read)
    even = not any(length % 2 for length in read.source_size)
    two = [2, 2]
    if list(kernel) != two or list(stride or kernel) != two or not even or any(others[:1]):
        raise CannotPrepare("maps are halved by the mean of 2x2 pixels, and have even sizes then")
    return emit.pointwise(read, Resample.HALVE)


# ---- arithmetic


@rule(aten.add.Tensor)
def add(emit: Emitter, free: Sequence[Any], a: Value, b: Any, *, alpha: float = 1) -> Value:
    if alpha != 1:
        raise CannotPrepare("sums are not weighted")
    if isinstance(a, InOrder) and isinstance(b, (int, float)):
        return replace(a, offset=a.offset + b, written=None)
    if _is_row(a) and isinstance(b, (int, float)) and b == 1:
        return replace(_row(emit, a), plus_one=True)
    if _is_row(a):
        a, b = b, a
    if _is_row(b):
        return _add_row(emit, free, a, _row(emit, b))
    for feature, other in ((a, b), (b, a)):
        if feature in free and feature.residual is None and feature.divisor == 1:
            return replace(feature, residual=other)
    return replace(emit.pointwise(emit.read(a)), residual=b)


@rule(aten.sub.Tensor)
def subtract(emit: Emitter, free: Sequence[Any], a: Value, b: Any) -> Value:
    if not isinstance(a, InOrder) or not isinstance(b, (int, float)):
        raise CannotPrepare("differences are taken of the step's input and a number only")
    return replace(a, offset=a.offset - b, written=None)


@rule(aten.mul.Tensor)
def multiply(emit: Emitter, free: Sequence[Any], a: Value, b: Any) -> Value:
    if isinstance(a, InOrder) and isinstance(b, (int, float)):
        return replace(a, factor=a.factor * b, offset=a.offset * b, written=None)
    if isinstance(a, Row):
        a, b = b, a
    unscaled = isinstance(a, Read) and a.norm is not None and a.norm.scale is None and not a.silu
    if not unscaled or not isinstance(b, Row) or not b.plus_one:
        raise CannotPrepare(f"{described(a)} is not multiplied by {described(b)}")
    return replace(a, norm=replace(a.norm, scale=b, coefficients=None), written=None)


@rule(aten.div.Tensor)
def divide(emit: Emitter, free: Sequence[Any], a: Value, b: Any) -> Value:
    if isinstance(b, Row):
        if (b.count, b.sample_stride, b.step_stride) != (1, 0, 1) or not isinstance(
            a, (Feature, Read)
        ):
            raise CannotPrepare("a map is divided by one number for each step")
        return Divided(a, b.address)
    if not isinstance(b, (int, float)):
        raise CannotPrepare(f"a map is not divided by {described(b)}")
    if a in free and a.divisor == 1:
        return replace(a, divisor=float(b))
    return replace(emit.pointwise(emit.read(a)), divisor=float(b))


def _add_row(emit: Emitter, free: Sequence[Any], x: Value, row: Row) -> Value:
    if isinstance(x, Read) and x.norm is not None and x.norm.scale is not None and not x.silu:
        return replace(x, norm=replace(x.norm, shift=row, coefficients=None), written=None)
    if x in free and x.row is None and x.divisor == 1:
        return replace(x, row=row)
    return replace(emit.pointwise(emit.read(x)), row=row)


# ---- rows


def _is_row(value: Any) -> bool:
    """Whether it has one number for each sample and channel, or for each channel."""
    if isinstance(value, Constant):
        return value.tensor.dim() == 4 and value.tensor.shape[2:] == (1, 1)
    return isinstance(value, Row)


def _row(emit: Emitter, value: Row | Constant) -> Row:
    if isinstance(value, Row):
        return value
    return _row_of(emit, value.tensor.flatten(1))


def _row_of(emit: Emitter, tensor: Tensor) -> Row:
    """A tensor [B, C] of the step's own as a row."""
    for sample in tensor[:1]:
        emit.address(sample)
    return Row(tensor.data_ptr(), tensor.shape[1], tensor.stride(0), 0)


@rule(TABLE_ROW)
def table_row(emit: Emitter, free: Sequence[Any], table: Constant, i: Value) -> Row:
    tensor = _constant(table)
    if not isinstance(i, Index):
        raise CannotPrepare("tables are read at the step's index")
    if len(tensor) < emit.num_steps:
        raise CannotPrepare(f"a table of {len(tensor)} rows serves no {emit.num_steps} steps")
    return Row(emit.address(tensor), tensor.shape[1], 0, tensor.shape[1])


@rule(aten.expand.default, aten.view.default, aten.unsqueeze.default)
def same_row(emit: Emitter, free: Sequence[Any], x: Value, *sizes: Any) -> Row:
    """A row with other dimensions around its numbers is the same row."""
    return _only_row(emit, x)


@rule(aten.slice.Tensor)
def part_of_row(
    emit: Emitter,
    free: Sequence[Any],
    x: Value,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Row:
    row = _only_row(emit, x)
    if dim != 1 or step != 1:
        raise CannotPrepare("rows are cut by channels")
    begin, stop, _ = slice(start, end).indices(row.count)
    return row.columns(begin, stop)


@rule(aten.split.Tensor)
def parts_of_row(
    emit: Emitter, free: Sequence[Any], x: Value, size: int, dim: int = 0
) -> list[Row]:
    row = _only_row(emit, x)
    if dim != 1:
        raise CannotPrepare("rows are cut by channels")
    return [row.columns(begin, min(begin + size, row.count)) for begin in range(0, row.count, size)]


def _only_row(emit: Emitter, x: Value) -> Row:
    """The value as a row: one that is computed in the step lies in a map of one pixel a sample."""
    if isinstance(x, Row):
        return x
    if isinstance(x, Feature) and x.shape[2:] == (1, 1):
        map = emit.map(x)
        return Row(map.address, map.channels, map.stride, 0)
    raise CannotPrepare(f"{described(x)} is no row")


def _constant(value: Any) -> Tensor:
    if not isinstance(value, Constant):
        raise CannotPrepare(f"weights and tables are tensors that stay, not {described(value)}")
    return value.tensor
