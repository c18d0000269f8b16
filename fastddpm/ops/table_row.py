"""One row of a table, chosen on the device: table[i].

As an op of its own, because a compiler that sees the indexing repeats it in a kernel for each part
of the row that is read: 22 kernels a step for the residual blocks of Ho's CIFAR-10 net.
"""

from __future__ import annotations

from torch import Tensor

from fastddpm.ops.registry import register


def table_row(table: Tensor, i: Tensor) -> Tensor:
    """Row i.

    Args:
        table: [T, R].
        i: int64 [1], in [0, T); read where it lies.

    Returns:
        [1, R], contiguous.

    Raises:
        ValueError: shapes or dtypes other than these.
        IndexError: i lies outside of the table. Seen on the CPU only; on a GPU looking would wait.
    """
    if table.dim() != 2 or i.dim() != 1 or len(i) != 1 or i.is_floating_point():
        raise ValueError(
            f"expected a table [T, R] and i int64 [1], got {list(table.shape)} and "
            f"{i.dtype} {list(i.shape)}"
        )
    row: Tensor = TABLE_ROW(table, i)
    return row


def _run(table: Tensor, i: Tensor) -> Tensor:
    return table.index_select(0, i)


def _fake(table: Tensor, i: Tensor) -> Tensor:
    return table.new_empty((1, table.shape[1]))


TABLE_ROW = register("table_row(Tensor table, Tensor i) -> Tensor", _run, _fake)
