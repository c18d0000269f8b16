"""What is no instruction of its own, but how the next one reads: GroupNorm, SiLU, concatenation,
doubling, padding. Halving is an instruction.

The order in which an instruction applies them is fixed: what comes in another one is written first.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from fastddpm.engine.cpu.emitter import Emitter
from fastddpm.engine.cpu.rules.registry import rule
from fastddpm.engine.cpu.values import Constant, Feature, Norm, Read, Value
from fastddpm.engine.plan import CannotPrepare
from fastddpm.ops.program_abi import Resample

aten = torch.ops.aten


@rule(aten.native_group_norm.default)
def group_norm(
    emit: Emitter,
    x: Value,
    weight: Constant | None,
    bias: Constant | None,
    batch: int,
    channels: int,
    pixels: int,
    groups: int,
    eps: float,
) -> list[Value | None]:
    scale, shift = (None if v is None else emit.address(v.tensor) for v in (weight, bias))
    read = emit.read_plain(x)
    # The mean and the deviation, which it returns besides, are nobody's.
    return [replace(read, norm=Norm(groups, eps, scale, shift)), None, None]


@rule(aten.silu.default)
def silu(emit: Emitter, x: Value) -> Read:
    read = emit.read(x)
    if read.silu or read.padded != (0, 0):
        read = emit.read_plain(read)
    return replace(read, silu=True, written=None)


@rule(aten.cat.default)
def cat(emit: Emitter, parts: list[Value], dim: int = 0) -> Read:
    if dim != 1:
        raise CannotPrepare("maps are joined by channels")
    maps = [part for value in parts for part in emit.read_plain(value).parts]
    while len(maps) > 2:
        maps[:2] = [emit.map(Read(tuple(maps[:2])))]
    return Read(tuple(maps))


@rule(aten.upsample_nearest2d.default)
def double(emit: Emitter, x: Value, size: list[int], *scales: float | None) -> Read:
    read = _not_resampled(emit, x)
    if list(size) != [2 * length for length in read.source_size]:
        raise CannotPrepare(f"maps are enlarged by two, not from {read.source_size} to {size}")
    return replace(read, doubled=True, written=None)


@rule(aten.constant_pad_nd.default)
def pad(emit: Emitter, x: Value, amounts: list[int], value: float = 0.0) -> Read:
    left, right, top, bottom, *others = [*amounts, 0, 0, 0, 0]
    if left or top or any(others) or value or min(right, bottom) < 0:
        raise CannotPrepare("maps are padded with zeros below and to the right only")
    return replace(_not_resampled(emit, x), padded=(bottom, right), written=None)


@rule(aten.avg_pool2d.default)
def halve(
    emit: Emitter,
    x: Value,
    kernel: list[int],
    stride: list[int] | None = None,
    padding: list[int] | None = None,
    *others: Any,
) -> Feature:
    read = _not_resampled(emit, x)
    even = not any(length % 2 for length in read.source_size)
    if {*kernel, *(stride or kernel)} != {2} or any(padding or ()) or not even:
        raise CannotPrepare("maps are halved by the mean of 2x2 pixels, and have even sizes then")
    return emit.pointwise(read, Resample.HALVE)


def _not_resampled(emit: Emitter, x: Value) -> Read:
    read = emit.read(x)
    return read if read.has_no_resampling else emit.read_plain(read)
