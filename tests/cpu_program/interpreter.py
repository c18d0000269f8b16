"""The instructions of kernels/include/fastddpm.h in plain torch and float64, from their structs.

It shows what a program computes, without any kernel: the numbers of the arena, of the weights and
of the tensors that the program reads or writes are held in float64 beside their own memory.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fastddpm.engine.cpu.lowering import Lowered
from fastddpm.kernels.ancestral_step import reference
from fastddpm.noise import Purpose, normal
from fastddpm.ops.program_abi import (
    Activation,
    Attention,
    Conv3x3,
    Convolution,
    Input,
    Layout,
    Norm,
    Output,
    Pointwise,
    Prediction,
    Resample,
    Row,
    Statistics,
    Step,
    Variance,
)

STRIP = 4
COLUMNS = len(reference.STEP_COLUMNS)
VARIANCES = {
    Variance.FIXED: "fixed_small",
    Variance.LEARNED: "learned",
    Variance.LEARNED_RANGE: "learned_range",
}


class Memory:
    """Float64 numbers for every address of a program's floats. The arena begins as NaN."""

    def __init__(self, program: Lowered, *others: Tensor) -> None:
        self._own: dict[int, Tensor] = {}
        for tensor in (program.arena, *program.constants, *others):
            if tensor.dtype in (torch.float32, torch.uint8):
                storage = tensor.untyped_storage()
                self._own[storage.data_ptr()] = torch.empty(0).set_(storage)
        self._regions = {start: own.double() for start, own in self._own.items()}
        for packed in program.packed:
            weight = packed.build(*(source.detach() for source in packed.sources))
            self._regions[packed.address] = weight.double().flatten()
        self._regions[program.arena.data_ptr()].fill_(math.nan)

    def at(self, address: int, shape: Sequence[int], strides: Sequence[int]) -> Tensor:
        """The numbers at an address, writable."""
        start = max(start for start in self._regions if start <= address)
        region, offset = self._regions[start], (address - start) // 4
        last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        assert last < len(region), "outside of everything that the program holds"
        return torch.as_strided(region, tuple(shape), tuple(strides), offset)

    def vector(self, address: int | None, count: int) -> Tensor | None:
        return None if address is None else self.at(address, (count,), (1,))

    def write_back(self) -> None:
        """Round the numbers into the memory that they stand for."""
        for start, own in self._own.items():
            own.copy_(self._regions[start])


def run(program: Lowered, memory: Memory, step: int) -> None:
    """All instructions, for one step."""
    replay = _Replay(memory, step)
    for arguments in program.code:
        getattr(replay, type(arguments).__name__.lower())(arguments)


class _Replay:
    """One method for each instruction, under its name in small letters."""

    def __init__(self, memory: Memory, index: int) -> None:
        self._memory, self._at, self._index = memory, memory.at, index

    def conv3x3(self, a: Conv3x3) -> None:
        scale = 2 if a.doubled else 1
        x = self._read(a.x, a.batch, a.height // scale, a.width // scale)
        x = F.interpolate(x, scale_factor=2.0) if a.doubled else x
        self._write(a.y, F.conv2d(x, self._weights(a, 3), padding=1))

    def convolution(self, a: Convolution) -> None:
        x = self._read(a.x, a.batch, a.input_height, a.input_width)
        reach = [
            (size - 1) * a.stride + a.kernel - given - a.padding
            for size, given in ((a.width, a.input_width), (a.height, a.input_height))
        ]
        x = F.pad(x, (a.padding, reach[0], a.padding, reach[1]))
        self._write(a.y, F.conv2d(x, self._weights(a, a.kernel), stride=a.stride))

    def attention(self, a: Attention) -> None:
        heads = []
        for data, stride in ((a.q, a.q_stride), (a.k, a.k_stride), (a.v, a.v_stride)):
            shape = (a.batch, a.heads, a.tokens, a.head_dim)
            heads.append(self._at(data, shape, (a.tokens * stride, a.head_dim, stride, 1)))
        q, k, v = heads
        mixed = (q @ k.mT * a.scale).softmax(-1) @ v  # [B, heads, N, d]
        mixed = mixed.permute(0, 1, 3, 2).flatten(1, 2)
        assert not a.y.statistics, "tokens have no rows"
        self._write(a.y, mixed[..., None])

    def statistics(self, a: Statistics) -> None:
        pixels = self._map(a.data, a.stride, a.batch, a.channels, a.height, a.width)
        self._write_statistics(a.statistics, a.stride, pixels)

    def norm(self, a: Norm) -> None:
        parts = []
        for part in range(2):
            if a.channels[part]:
                parts.append(self._moments(a, part))
        mean, deviations = (torch.cat(moments, 1) for moments in zip(*parts, strict=True))
        channels, count = mean.shape[1], a.height * a.width
        grouped = mean.view(a.batch, a.groups, -1)
        centre = grouped.mean(2, keepdim=True)
        spread = deviations.view_as(grouped).sum(2) + count * (grouped - centre).square().sum(2)
        variance = spread / (count * grouped.shape[2])
        means = centre.expand_as(grouped).reshape(a.batch, channels)
        scale = (variance + a.eps).rsqrt()[..., None].expand_as(grouped).reshape_as(means)
        weight, bias = (self._memory.vector(v, channels) for v in (a.weight, a.bias))
        scale = scale if weight is None else scale * weight
        shift = torch.zeros_like(scale) if bias is None else bias.expand_as(scale)
        if a.modulation.data:
            film = self._row(a.modulation, a.batch, 2 * channels)
            factor, more = 1 + film[:, :channels], film[:, channels:]
            scale, shift = scale * factor, shift * factor + more
        width = -(-channels // 16) * 16
        to = self._at(a.norm, (a.batch, 3, channels), (3 * width, width, 1))
        to.copy_(torch.stack([means, scale, shift], 1))

    def pointwise(self, a: Pointwise) -> None:
        sizes = a.height, a.width
        if a.resample == Resample.HALVE:
            x = F.avg_pool2d(self._read(a.x, a.batch, *(2 * size for size in sizes)), 2)
        elif a.resample == Resample.DOUBLE:
            half = self._read(a.x, a.batch, *(size // 2 for size in sizes))
            x = F.interpolate(half, scale_factor=2.0)
        else:
            x = self._read(a.x, a.batch, *sizes)
        self._write(a.y, x)

    def layout(self, a: Layout) -> None:
        sizes = a.batch, a.channels, a.pixels
        in_order, map = (a.channels * a.pixels, a.pixels, 1), (a.pixels * a.stride, 1, a.stride)
        to, source = (map, in_order) if a.into_map else (in_order, map)
        value = self._at(getattr(a, "from"), sizes, source) * a.factor + a.offset
        if a.divisor.data:
            begin = a.divisor.data + 4 * a.divisor.step_stride * self._index
            value = value / self._at(begin, (a.batch, 1, 1), (a.divisor.sample_stride, 0, 0))
        self._at(a.to, sizes, to).copy_(value)

    def step(self, a: Step) -> None:
        rows = self._index + 1
        table = self._at(a.table, (rows, COLUMNS), (COLUMNS, 1)).float()
        state = self._at(a.x, (a.batch, a.elements), (a.elements, 1))
        outputs = 1 if a.variance == Variance.FIXED else 2
        width = outputs * a.elements
        output = self._at(a.model_output, (a.batch, width), (width, 1)).float()
        index = torch.tensor([self._index])
        if a.noise:
            noise = self._at(a.noise, (a.batch, a.elements), (a.elements, 1)).float()
        else:
            timestep = _integers(a.timesteps, rows)[self._index :]
            seed, indices = _integers(a.seed, 1), _integers(a.indices, a.batch)
            noise = normal(seed, indices, timestep, (a.elements,), Purpose.REVERSE)
        x_prev, x_0 = reference.ancestral_step(
            *(state.float(), output, noise, table, index),
            prediction=Prediction(a.prediction).name.lower(),
            variance=VARIANCES[a.variance],
            clip=None if math.isinf(a.clip) else a.clip,
        )
        state.copy_(x_prev)
        if a.x_0:
            self._at(a.x_0, state.shape, state.stride()).copy_(x_0)
        if a.first_nonfinite and not (x_prev.isfinite().all() and output.isfinite().all()):
            flag = ctypes.c_int64.from_address(a.first_nonfinite)
            flag.value = max(flag.value, self._index)

    # ---- operands

    def _map(self, data: int, stride: int, batch: int, channels: int, *size: int) -> Tensor:
        """[B, C, H, W]"""
        height, width = size
        strides = (height * width * stride, 1, width * stride, stride)
        return self._at(data, (batch, channels, height, width), strides)

    def _read(self, x: Input, batch: int, height: int, width: int) -> Tensor:
        parts = [
            self._map(x.data[k], x.stride[k], batch, x.channels[k], height, width)
            for k in range(2)
            if x.channels[k]
        ]
        value = torch.cat(parts, 1)
        if x.norm:
            channels = value.shape[1]
            rows = -(-channels // 16) * 16
            norm = self._at(x.norm, (batch, 3, channels), (3 * rows, rows, 1))
            mean, scale, shift = norm[..., None, None].unbind(1)
            value = (value - mean) * scale + shift
        return F.silu(value) if x.activation == Activation.SILU else value

    def _row(self, row: Row, batch: int, count: int) -> Tensor:
        address = row.data + 4 * self._index * row.step_stride
        return self._at(address, (batch, count), (row.sample_stride, 1))

    def _write(self, y: Output, value: Tensor) -> None:
        batch, channels, *size = value.shape
        assert channels == y.channels
        if y.bias:
            value = value + self._at(y.bias, (channels, 1, 1), (1, 0, 0))
        if y.row.data:
            value = value + self._row(y.row, batch, channels)[..., None, None]
        if y.residual:
            value = value + self._map(y.residual, y.residual_stride, batch, channels, *size)
        value = value / y.divisor
        self._map(y.data, y.stride, batch, channels, *size).copy_(value)
        if y.statistics:
            self._write_statistics(y.statistics, y.stride, value)

    def _weights(self, a: Conv3x3 | Convolution, size: int) -> Tensor:
        shape = (a.y.channels, sum(a.x.channels), size, size)
        strides = (shape[1] * size * size, size * size, size, 1)
        return self._at(a.weights, shape, strides)

    def _write_statistics(self, to: int, stride: int, pixels: Tensor) -> None:
        batch, channels = pixels.shape[:2]
        strips = pixels.split(STRIP, dim=2)
        moments = self._at(
            to, (batch, len(strips), 2, channels), (len(strips) * 2 * stride, 2 * stride, stride, 1)
        )
        for k, strip in enumerate(strips):
            mean = strip.mean((2, 3))
            moments[:, k, 0] = mean
            moments[:, k, 1] = (strip - mean[..., None, None]).square().sum((2, 3))

    def _moments(self, a: Norm, part: int) -> tuple[Tensor, Tensor]:
        """Mean and squared deviations of each channel of a map, [B, C] each."""
        strips, stride, channels = -(-a.height // STRIP), a.stride[part], a.channels[part]
        strides = (strips * 2 * stride, 2 * stride, stride, 1)
        moments = self._at(a.statistics[part], (a.batch, strips, 2, channels), strides)
        rows = [min(STRIP, a.height - STRIP * k) for k in range(strips)]
        counts = torch.tensor(rows, dtype=torch.float64)[:, None] * a.width
        means, deviations = moments[:, :, 0], moments[:, :, 1]
        mean = (means * counts).sum(1) / counts.sum()
        return mean, (deviations + counts * (means - mean[:, None]).square()).sum(1)


def _integers(address: int, count: int) -> Tensor:
    return torch.tensor(list((ctypes.c_int64 * count).from_address(address)))
