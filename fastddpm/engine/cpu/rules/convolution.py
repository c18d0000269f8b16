"""Convolutions and linear layers.

3x3 of stride 1 and padding 1    CONV3X3, which reads a doubled map as it is; but for an image's few
                                 channels, where a transform does not pay
any other                        CONVOLUTION; a linear layer is one of 1x1
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastddpm.engine.cpu.emitter import Emitter, tensor_of
from fastddpm.engine.cpu.packed import Build, Packed
from fastddpm.engine.cpu.rules.registry import rule
from fastddpm.engine.cpu.values import Constant, Feature, Read, Value
from fastddpm.engine.plan import CannotPrepare
from fastddpm.ops.program_abi import Arguments, Conv3x3, Convolution, Output

aten = torch.ops.aten
# From this many input channels on a transformed 3x3 convolution pays.
_TRANSFORMED_FROM = 16


def as_it_is(weight: Tensor) -> Tensor:
    """The build of weights [out, in, k, k]."""
    return weight


def transposed(weight: Tensor) -> Tensor:
    """The build of a factor [in, out] of a product."""
    return weight.t()[:, :, None, None]


@rule(aten.convolution.default)
def convolution(
    emit: Emitter,
    x: Value,
    weight: Value,
    bias: Constant | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    is_transposed: bool,
    output_padding: list[int],
    groups: int,
) -> Feature:
    tensor, size = tensor_of(weight), tuple(tensor_of(weight).shape[2:])
    usual = not is_transposed and groups == 1 and set(dilation) == {1}
    if size not in ((1, 1), (3, 3)) or not usual:
        raise CannotPrepare(
            "convolutions are 1x1 or 3x3 in two dimensions, not transposed, dilated or grouped; "
            f"this one has weights {list(tensor.shape)}"
        )
    if len(set(stride)) > 1 or len(set(padding)) > 1:
        raise CannotPrepare("a convolution has one stride and one padding for both dimensions")
    own = None if bias is None else emit.address(bias.tensor)
    return convolve(
        *(emit, emit.read(x), (tensor,), as_it_is, own),
        size=size[0],
        stride=stride[0],
        padding=padding[0],
    )


@rule(aten.addmm.default)
def addmm(emit: Emitter, bias: Value, x: Value, weight: Value) -> Feature:
    own = emit.address(tensor_of(bias))
    return convolve(emit, emit.read(x), (tensor_of(weight),), transposed, own)


def convolve(
    emit: Emitter,
    x: Read,
    sources: Sequence[Tensor],
    build: Build,
    bias: int | None,
    *,
    size: int = 1,
    stride: int = 1,
    padding: int = 0,
) -> Feature:
    """The convolution of what is read with the weights build(*sources), [out, in, size, size]."""
    if size == 3 and (stride, padding) == (1, 1) and x.channels >= _TRANSFORMED_FROM:
        pixels = x.shape[2] * x.shape[3]
        packing = emit.options.packing_3x3(x.channels, pixels, doubled=x.doubled)
        return _conv3x3(emit, x, emit.pack("conv3x3", sources, build, packing), bias)
    packed = emit.pack("convolution", sources, build)
    return _convolution(emit, x, packed, bias, size, stride, padding)


def _conv3x3(emit: Emitter, x: Read, packed: Packed, bias: int | None) -> Feature:
    x = x if x.padded == (0, 0) else emit.read_plain(x)
    batch, _, height, width = x.shape

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

    return Feature((batch, packed.outputs, height, width), make, bias=bias)


def _convolution(
    emit: Emitter,
    x: Read,
    packed: Packed,
    bias: int | None,
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

    return Feature((batch, packed.outputs, height, width), make, bias=bias)
