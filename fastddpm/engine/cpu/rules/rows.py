"""Rows: what all pixels of a sample share, read from a table at the step's index, from a tensor of
the step's own, or from a map of one pixel a sample that the step computes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastddpm.engine.cpu.emitter import Emitter, described, tensor_of
from fastddpm.engine.cpu.rules.registry import rule
from fastddpm.engine.cpu.values import Constant, Feature, Index, Row, Value
from fastddpm.engine.plan import CannotPrepare
from fastddpm.ops.table_row import TABLE_ROW

aten = torch.ops.aten


@rule(TABLE_ROW)
def table_row(emit: Emitter, table: Value, i: Value) -> Row:
    tensor = tensor_of(table)
    if not isinstance(i, Index):
        raise CannotPrepare("tables are read at the step's index")
    if len(tensor) < emit.num_steps:
        raise CannotPrepare(f"a table of {len(tensor)} rows serves no {emit.num_steps} steps")
    return Row(emit.address(tensor), tensor.shape[1], 0, tensor.shape[1])


@rule(aten.expand.default, aten.view.default, aten.unsqueeze.default)
def same_row(emit: Emitter, x: Value, *sizes: Any) -> Row:
    """With other dimensions around its numbers."""
    return _row(emit, x)


@rule(aten.slice.Tensor)
def part_of_row(
    emit: Emitter,
    x: Value,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Row:
    row = _row(emit, x)
    if dim != 1 or step != 1:
        raise CannotPrepare("rows are cut by channels")
    begin, stop, _ = slice(start, end).indices(row.count)
    return row.columns(begin, stop)


@rule(aten.split.Tensor)
def parts_of_row(emit: Emitter, x: Value, size: int, dim: int = 0) -> list[Row]:
    row = _row(emit, x)
    if dim != 1:
        raise CannotPrepare("rows are cut by channels")
    begins = range(0, row.count, size)
    return [row.columns(begin, min(begin + size, row.count)) for begin in begins]


def as_row(emit: Emitter, value: Any) -> Row | None:
    """The value as a row, if it is one as it stands: one number for each sample and channel."""
    if isinstance(value, Constant) and value.tensor.dim() == 4 and value.tensor[0, 0].numel() == 1:
        return _row_of(emit, value.tensor.flatten(1))
    return value if isinstance(value, Row) else None


def _row_of(emit: Emitter, tensor: Tensor) -> Row:
    """A tensor [B, C] of the step's own, whose samples may lie apart."""
    for sample in tensor:
        emit.address(sample)
    return Row(tensor.data_ptr(), tensor.shape[1], _stride(len(tensor), tensor.stride(0)), 0)


def _row(emit: Emitter, x: Value) -> Row:
    if isinstance(x, Row):
        return x
    if isinstance(x, Feature) and x.shape[2:] == (1, 1):
        map = emit.map(x)
        return Row(map.address, map.channels, _stride(map.shape[0], map.stride), 0)
    raise CannotPrepare(f"{described(x)} is no row")


def _stride(samples: int, stride: int) -> int:
    """Between samples; one row serves them all."""
    return 0 if samples == 1 else stride
