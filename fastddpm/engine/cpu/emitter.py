"""Instructions from values: what a value needs to be read, written or known is emitted here.

What is emitted lies in ``code`` in order. An instruction can still be told to write the statistics
of its output after it was emitted, since the code is laid out at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastddpm.engine.cpu import values
from fastddpm.engine.cpu.arena import Arena
from fastddpm.engine.cpu.calls import HostCall
from fastddpm.engine.cpu.memory import aligned
from fastddpm.engine.cpu.options import CpuOptions
from fastddpm.engine.cpu.packed import Build, Packed, PackedWeights
from fastddpm.engine.cpu.values import Divided, Feature, InOrder, Map, Norm, Read, Shape, Value
from fastddpm.engine.plan import CannotPrepare
from fastddpm.ops.program_abi import (
    ALIGN,
    Activation,
    Arguments,
    Attention,
    Input,
    Layout,
    Output,
    Packing,
    Pointwise,
    Resample,
    Row,
    Statistics,
)
from fastddpm.ops.program_abi import Norm as NormInstruction

STRIP = 4  # rows of a map that share their statistics
# Floats: pixels a multiple of 4 KB apart would fall into the same few places of a cache.
_ALIASING = 1024


class Emitter:
    """The program as it grows.

    code:      instructions; names of the arena stand for addresses.
    packed:    the packed weights that they read.
    constants: the tensors that they read or write where these lie.
    calls:     the functions that they call.

    num_steps: rows that every table has.
    """

    def __init__(self, weights: PackedWeights, num_steps: int) -> None:
        self.num_steps = num_steps
        self.arena = Arena()
        self.code: list[Arguments] = []
        self.packed: list[Packed] = []
        self.constants: list[Tensor] = []
        self.calls: list[HostCall] = []
        self._weights = weights

    # ---- memory

    def address(self, tensor: Tensor, dtype: torch.dtype = torch.float32) -> int:
        """Where a tensor that the step holds lies."""
        if tensor.device.type != "cpu" or tensor.dtype != dtype or not tensor.is_contiguous():
            raise CannotPrepare(
                f"the program reads contiguous {dtype} tensors on the CPU where they lie, not "
                f"{tensor.dtype} {list(tensor.shape)} with strides {list(tensor.stride())} on "
                f"{tensor.device}"
            )
        self.constants.append(tensor)
        return tensor.data_ptr()

    @property
    def options(self) -> CpuOptions:
        """The engine's."""
        return self._weights.options

    def pack(
        self, kind: str, sources: Sequence[Tensor], build: Build, packing: Packing | None = None
    ) -> Packed:
        """A layer's packed weights; see ``PackedWeights.of``."""
        packed = self._weights.of(kind, sources, build, packing)
        self.packed.append(packed)
        return packed

    def _new_map(self, shape: Shape) -> Map:
        batch, channels, height, width = shape
        stride = aligned(channels, ALIGN)
        stride += ALIGN if stride % _ALIASING == 0 else 0
        return Map(self.arena.reserve(batch * height * width * stride), stride, shape)

    # ---- reading

    def read(self, value: Value) -> Read:
        """The value as something that an instruction reads; features are written now."""
        if isinstance(value, Read):
            return value
        if isinstance(value, Feature):
            return Read((self._feature(value),))
        if isinstance(value, values.Constant):
            value = InOrder(value.tensor)
        if isinstance(value, InOrder):
            value.written = value.written or self._into_map(value)
            return Read((value.written,))
        raise CannotPrepare(f"{described(value)} is no feature map")

    def read_plain(self, value: Value) -> Read:
        """Maps as they lie in memory: what is normalised or resampled is written first."""
        read = self.read(value)
        return read if read.is_plain else Read((self.map(read),))

    def map(self, value: Value) -> Map:
        """The value as one map in memory."""
        read = self.read(value)
        if read.is_plain and len(read.parts) == 1:
            return read.parts[0]
        if read.written is None:
            read.written = self._feature(self.pointwise(read))
        return read.written

    def input(self, read: Read) -> Input:
        """What an instruction is told of what it reads; doubling and padding are its own affair."""
        first, second = read.parts[0], read.parts[1] if len(read.parts) > 1 else None
        norm = None if read.norm is None else self._coefficients(read.norm, read.parts)
        return Input(
            data=(first.address, None if second is None else second.address),
            stride=(first.stride, 0 if second is None else second.stride),
            channels=(first.channels, 0 if second is None else second.channels),
            norm=norm,
            activation=Activation.SILU if read.silu else Activation.NONE,
        )

    def pointwise(self, read: Read, resample: Resample = Resample.NONE) -> Feature:
        """What is read as a map of its own, halved if that is asked for."""
        if read.padded != (0, 0):
            raise CannotPrepare("zeros beside a map are read by convolutions without padding only")
        batch, channels, height, width = read.shape
        if resample == Resample.HALVE:
            height, width = height // 2, width // 2
        elif read.doubled:
            resample = Resample.DOUBLE

        def make(y: Output) -> Arguments:
            x = self.input(read)
            return Pointwise(x=x, y=y, batch=batch, height=height, width=width, resample=resample)

        return Feature((batch, channels, height, width), make)

    def call(self, function: Callable[..., None], tensors: Sequence[Tensor]) -> None:
        """Have a function called with tensors that the step holds."""
        call = HostCall(function, tensors)
        self.calls.append(call)
        self.code.append(call.instruction)

    # ---- writing

    def _feature(self, feature: Feature) -> Map:
        """The feature's map; emits its instruction if that has not been done."""
        if feature.written is not None:
            return feature.written
        residual = None if feature.residual is None else self.map(feature.residual)
        to, row = self._new_map(feature.shape), feature.row
        y = Output(
            data=to.address,
            stride=to.stride,
            channels=to.channels,
            bias=feature.bias,
            row=self.row(row),
            residual=None if residual is None else residual.address,
            residual_stride=0 if residual is None else residual.stride,
            divisor=feature.divisor,
        )
        to.producer = feature.make(y)
        self.code.append(to.producer)
        feature.written = to
        return to

    def row(self, row: values.Row | None) -> Row:
        """The row as an instruction is told it."""
        if row is None:
            return Row()
        if row.plus_one:
            raise CannotPrepare("one plus a row is a scale, and only of a normalised map")
        return Row(row.address, row.sample_stride, row.step_stride)

    def in_order(self, value: Value) -> int:
        """The address of the value as float32 in torch's order."""
        if isinstance(value, values.Constant):
            return self.address(value.tensor)
        plain = isinstance(value, InOrder) and (value.factor, value.offset) == (1.0, 0.0)
        if isinstance(value, InOrder) and plain and not value.gone:
            return self.address(value.tensor)
        source = value.map if isinstance(value, Divided) else value
        name = self.arena.reserve(math.prod(self.read(source).shape))
        self.write_in_order(value, name)
        return name

    def write_in_order(self, value: Value, to: int) -> None:
        """Write the value in torch's order to an address."""
        source = self.map(value.map if isinstance(value, Divided) else value)
        divisor = value.divisor if isinstance(value, Divided) else None
        self._layout(to, source.address, source, into_map=0, divisor=divisor)

    def _into_map(self, value: InOrder) -> Map:
        if value.gone:
            raise CannotPrepare("it reads the state as it was before it was written")
        tensor = value.tensor
        batch, channels, *spatial = tensor.shape
        if len(spatial) not in (0, 2):
            raise CannotPrepare(f"maps have two dimensions, not {len(spatial)}")
        height, width = spatial or (1, 1)
        to = self._new_map((batch, channels, height, width))
        own = self.address(tensor)
        self._layout(to.address, own, to, into_map=1, factor=value.factor, offset=value.offset)
        return to

    def _layout(
        self,
        to: int,
        source: int,
        map: Map,
        *,
        into_map: int,
        factor: float = 1.0,
        offset: float = 0.0,
        divisor: values.Row | None = None,
    ) -> None:
        batch, channels, height, width = map.shape
        sizes = {"batch": batch, "channels": channels, "pixels": height * width}
        scaling = {"factor": factor, "offset": offset, "divisor": self.row(divisor)}
        ends = {"to": to, "from": source, "stride": map.stride, "into_map": into_map}
        self.code.append(Layout(**ends, **sizes, **scaling))

    # ---- normalisation

    def _coefficients(self, norm: Norm, parts: tuple[Map, ...]) -> int:
        """Where a norm's coefficients [B, 3, S] are."""
        if norm.coefficients is None:
            norm.coefficients = self._emit_norm(norm, parts)
        return norm.coefficients

    def _emit_norm(self, norm: Norm, parts: tuple[Map, ...]) -> int:
        batch, _, height, width = parts[0].shape
        channels = [part.channels for part in parts]
        width_of_norm = aligned(sum(channels), ALIGN)
        name = self.arena.reserve(batch * 3 * width_of_norm)
        arguments = NormInstruction(
            batch=batch,
            height=height,
            width=width,
            groups=norm.groups,
            eps=norm.eps,
            weight=norm.weight,
            bias=norm.bias,
            modulation=self._modulation(norm, sum(channels)),
            norm=name,
        )
        for k, part in enumerate(parts):
            arguments.statistics[k] = self._statistics(part)
            arguments.stride[k], arguments.channels[k] = part.stride, part.channels
        self.code.append(arguments)
        return name

    def _modulation(self, norm: Norm, channels: int) -> Row:
        scale, shift = norm.scale, norm.shift
        if scale is None and shift is None:
            return Row()
        if scale is None or shift is None or scale.count != channels or not shift.follows(scale):
            raise CannotPrepare(
                "a normalised map is modulated by a scale and a shift that lie side by side"
            )
        return Row(scale.address, scale.sample_stride, scale.step_stride)

    def _statistics(self, map: Map) -> int:
        """Where the map's statistics are: its producer writes them, if it can."""
        if map.statistics is None:
            batch, channels, height, width = map.shape
            map.statistics = self.arena.reserve(batch * -(-height // STRIP) * 2 * map.stride)
            # Tokens have no rows: attention writes none.
            if map.producer is not None and not isinstance(map.producer, Attention):
                map.producer.y.statistics = map.statistics
            else:
                sizes = {"batch": batch, "height": height, "width": width}
                own = {"data": map.address, "stride": map.stride, "channels": channels}
                self.code.append(Statistics(**own, **sizes, statistics=map.statistics))
        return map.statistics


def tensor_of(value: Value) -> Tensor:
    """The tensor that stays: a weight or a table."""
    if not isinstance(value, values.Constant):
        raise CannotPrepare(f"weights and tables are tensors that stay, not {described(value)}")
    return value.tensor


def described(value: object) -> str:
    """The value for a message."""
    if isinstance(value, values.Missing):
        return value.operation
    return f"a {type(value).__name__}"
