"""Sums, and the few products and quotients of a step.

map + row, map + map, map / number     by the instruction that writes the map, if nobody else reads
                                       it; else by an instruction of its own
norm (1 + row) + row                   FiLM, in the norm's coefficients
image number + number                  where the image becomes a map
map / one number a sample              where the map becomes an image
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from fastddpm.engine.cpu.emitter import Emitter, described
from fastddpm.engine.cpu.rules.registry import rule
from fastddpm.engine.cpu.rules.rows import as_row
from fastddpm.engine.cpu.values import Divided, Feature, InOrder, Read, Row, Value
from fastddpm.engine.plan import CannotPrepare

aten = torch.ops.aten
_NUMBER = (int, float)


@rule(aten.add.Tensor)
def add(emit: Emitter, a: Value, b: Any, *, alpha: float = 1) -> Value:
    if alpha != 1:
        raise CannotPrepare("sums are not weighted")
    if isinstance(a, InOrder) and isinstance(b, _NUMBER):
        return replace(a, offset=a.offset + b, written=None)
    row_a, row_b = as_row(emit, a), as_row(emit, b)
    if row_a is not None and isinstance(b, _NUMBER) and b == 1:
        return replace(row_a, plus_one=True)
    if row_b is not None:
        return _add_row(emit, a, row_b)
    if row_a is not None:
        return _add_row(emit, b, row_a)
    return _add_map(emit, a, b)


def _add_row(emit: Emitter, x: Value, row: Row) -> Value:
    x = x if isinstance(x, Feature) else emit.read(x)
    if row.count != x.shape[1]:
        raise CannotPrepare(f"a row of {row.count} numbers is not added to {x.shape[1]} channels")
    if isinstance(x, Read) and x.norm is not None and x.norm.scale is not None and not x.silu:
        return replace(x, norm=replace(x.norm, shift=row, coefficients=None), written=None)
    if isinstance(x, Feature) and x.is_open and x.row is None:
        return replace(x, row=row)
    return replace(emit.pointwise(emit.read(x)), row=row)


def _add_map(emit: Emitter, a: Value, b: Value) -> Feature:
    a, b = (x if isinstance(x, Feature) else emit.read(x) for x in (a, b))
    if a.shape != b.shape:
        raise CannotPrepare(f"maps of different shapes are not added: {a.shape} and {b.shape}")
    for x, other in ((a, b), (b, a)):
        if isinstance(x, Feature) and x.is_open and x.residual is None:
            return replace(x, residual=other)
    return replace(emit.pointwise(emit.read(a)), residual=b)


@rule(aten.sub.Tensor)
def subtract(emit: Emitter, a: Value, b: Any, *, alpha: float = 1) -> Value:
    if not isinstance(a, InOrder) or not isinstance(b, _NUMBER) or alpha != 1:
        raise CannotPrepare("differences are taken of an image and a number only")
    return replace(a, offset=a.offset - b, written=None)


@rule(aten.mul.Tensor)
def multiply(emit: Emitter, a: Value, b: Any) -> Value:
    if isinstance(a, InOrder) and isinstance(b, _NUMBER):
        return replace(a, factor=a.factor * b, offset=a.offset * b, written=None)
    scale, x = (a, b) if isinstance(a, Row) else (b, a)
    norm = x.norm if isinstance(x, Read) and not x.silu else None
    if norm is not None and norm.scale is None and isinstance(scale, Row) and scale.plus_one:
        return replace(x, norm=replace(norm, scale=scale, coefficients=None), written=None)
    raise CannotPrepare(f"{described(a)} is not multiplied by {described(b)}")


@rule(aten.div.Tensor)
def divide(emit: Emitter, a: Value, b: Any) -> Value:
    row = as_row(emit, b)
    if row is not None and row.count == 1 and not row.plus_one:
        return Divided(emit.read(a), row)
    if not isinstance(b, _NUMBER):
        raise CannotPrepare(f"maps are divided by one number, or one a sample; not {described(b)}")
    if isinstance(a, Feature) and a.is_open:
        return replace(a, divisor=float(b))
    return replace(emit.pointwise(emit.read(a)), divisor=float(b))
