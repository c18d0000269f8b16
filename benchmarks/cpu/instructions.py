"""A kernel's cases as single instructions and as torch's own operations, with bytes and FLOP.

Bytes are the least that a call must move: maps, weights and what it writes, each once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import origin
from benchmarks.cpu import work
from fastddpm.engine.cpu.native import NativeProgram
from fastddpm.kernels.attention import cases as attention_cases
from fastddpm.kernels.conv3x3 import cases as conv3x3_cases
from fastddpm.kernels.conv3x3.reference import conv3x3
from fastddpm.kernels.convolution import cases as convolution_cases
from fastddpm.kernels.convolution.reference import convolution
from fastddpm.kernels.pointwise import cases as pointwise_cases
from fastddpm.kernels.pointwise.reference import RESAMPLES, pointwise
from fastddpm.ops.program_abi import (
    Activation,
    Arguments,
    Attention,
    Conv3x3,
    Convolution,
    Output,
    Packing,
    Pointwise,
)

# The tests know how an instruction's maps lie in memory.
sys.path.append(str(origin.REPOSITORY / "tests"))

import cpu_instructions as harness


class Measured(NamedTuple):
    """One case.

    arguments: the instruction. keeps: what its addresses point to. output: reads its result.
    torchs:    the same by torch's own operations, channels last.
    """

    name: str
    arguments: Arguments
    keeps: Any
    output: Callable[[], Tensor]
    torchs: Callable[[], Tensor]
    exact: Callable[[], Tensor]
    bytes: int

    @property
    def flop(self) -> int:
        """That are executed."""
        return work.flop(self.arguments)

    def program(self, threads: int) -> Callable[[], object]:
        """Replays the instruction; it keeps the maps alive."""
        program, index = NativeProgram([self.arguments], threads), torch.zeros(1, dtype=torch.int64)

        def replay(self: Measured = self) -> None:
            index.zero_()
            program.run(index, 1, 1e9)

        return replay


def measured(batch: int, packing: Packing = Packing.FLOAT32) -> list[Measured]:
    """The network's own layers for a batch."""
    three = [case._replace(shape=(batch, *case.shape[1:])) for case in conv3x3_cases.NETWORK]
    others = [case._replace(batch=batch) for case in convolution_cases.NETWORK_CASES]
    attentions = [case._replace(batch=batch) for case in attention_cases.NETWORK_CASES]
    pointwises = [
        case._replace(shape=(batch, *case.shape[1:]))
        for case in pointwise_cases.CASES
        if case.name.startswith("norm_silu")
    ]
    return [
        *(_conv3x3(case, packing) for case in three),
        *(_convolution(case, packing) for case in others),
        *(_attention(case) for case in attentions),
        *(_pointwise(case) for case in pointwises),
    ]


class _Operands:
    """A case's tensors as the instruction's buffers."""

    def __init__(self, tensors: dict[str, Any], maps: list[Tensor], shape: tuple[int, ...]) -> None:
        self.maps = [harness.as_map(x) for x in maps]
        batch, channels, *spatial = shape
        self.y = harness.empty_map(batch, channels, *spatial)
        own = {name: tensors.get(name) for name in ("bias", "row", "norm", "residual")}
        self.bias, self.row = (_buffer(own[name]) for name in ("bias", "row"))
        self.norm = None if own["norm"] is None else _norm(own["norm"])
        self.residual = None if own["residual"] is None else harness.as_map(own["residual"])
        self.weights: Any = None

    def read(self, activation: str | None) -> Any:
        silu = Activation.SILU if activation == "silu" else Activation.NONE
        return harness.reads(*self.maps, norm=self.norm, activation=silu)

    def written(self, divisor: float) -> Output:
        row = None if self.row is None else harness.row(self.row, self.y.channels)
        written: Output = harness.writes(
            self.y, bias=self.bias, row=row, residual=self.residual, divisor=divisor
        )
        return written

    def bytes(self) -> int:
        maps = [*self.maps, self.y, *([self.residual] if self.residual else [])]
        buffers = [made.buffer for made in maps] + ([self.weights] if self.weights else [])
        return 4 * sum(int(buffer.count) for buffer in buffers)

    def measured(
        self, name: str, arguments: Arguments, torchs: Callable[..., Tensor], tensors: Any
    ) -> Measured:
        inputs = _cast(tensors, _channels_last)
        return Measured(
            name,
            arguments,
            self,
            lambda: harness.from_map(self.y),
            lambda: torchs(**inputs),
            lambda: torchs(**_cast(tensors, Tensor.double)),
            self.bytes(),
        )


def _conv3x3(case: conv3x3_cases.Case, packing: Packing) -> Measured:
    tensors = case.tensors()
    maps = [tensors[name] for name in ("x", "skip") if name in tensors]
    own = _Operands(tensors, maps, case.shape)
    own.weights = harness.pack_conv3x3(tensors["weight"], packing)
    batch, _, height, width = case.shape
    arguments = Conv3x3(
        own.read(case.activation),
        own.written(case.divisor),
        *(batch, height, width, case.doubled, own.weights.address, packing),
    )
    settings = case.settings()
    return own.measured(
        f"conv3x3_{case.name}", arguments, lambda **t: conv3x3(**t, **settings), tensors
    )


def _convolution(case: convolution_cases.Case, packing: Packing) -> Measured:
    tensors = case.tensors()
    own = _Operands(tensors, tensors["maps"], (case.batch, case.out, *case.out_size))
    own.weights = harness.pack_convolution(tensors["weight"], packing)
    arguments = Convolution(
        own.read(case.activation),
        own.written(case.divisor),
        *(case.batch, *case.out_size, *case.size, case.kernel, case.stride, case.padding),
        *(own.weights.address, packing),
    )
    settings = case.settings()
    return own.measured(
        f"convolution_{case.name}", arguments, lambda **t: convolution(**t, **settings), tensors
    )


def _attention(case: attention_cases.Case) -> Measured:
    tensors = case.tensors()
    own = _Operands(tensors, [tensors[k] for k in "qkv"], (case.batch, case.channels, case.tokens))
    strides = [made.stride for made in own.maps]
    arguments = Attention(
        *(made.address for made in own.maps),
        *strides,
        own.written(case.divisor),
        *(case.batch, case.tokens, case.heads, case.head_dim, case.scale),
    )

    def torchs(q: Tensor, k: Tensor, v: Tensor, **others: Tensor) -> Tensor:
        q, k, v = (t.reshape(*t.shape[:2], case.heads, -1).transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, scale=case.scale).transpose(1, 2).flatten(2)
        for other in others.values():
            y = y + other
        return y

    return own.measured(f"attention_{case.name}", arguments, torchs, tensors)


def _pointwise(case: pointwise_cases.Case) -> Measured:
    tensors = case.tensors()
    maps = [tensors[name] for name in ("x", "skip") if name in tensors]
    own = _Operands(tensors, maps, case.written)
    batch, _, height, width = case.written
    arguments = Pointwise(
        own.read(case.activation),
        own.written(case.divisor),
        *(batch, height, width, RESAMPLES.index(case.resample)),
    )
    settings = case.settings()
    return own.measured(
        f"pointwise_{case.name}", arguments, lambda **t: pointwise(**t, **settings), tensors
    )


def _buffer(values: Tensor | None) -> Any:
    return None if values is None else harness.as_buffer(values)


def _norm(norm: Tensor) -> Any:
    """[B, 3, C] with C rounded up."""
    wide = torch.zeros(*norm.shape[:2], harness.aligned(norm.shape[2]))
    wide[..., : norm.shape[2]] = norm
    return harness.as_buffer(wide)


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def _cast(tensors: dict[str, Any], change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """Of every tensor and every list of them."""
    return {
        name: [change(one) for one in value] if isinstance(value, list) else change(value)
        for name, value in tensors.items()
    }
