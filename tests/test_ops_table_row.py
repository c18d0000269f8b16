"""table_row: the row that a device index chooses, as one op that a compiler leaves alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastddpm import ops

TABLE = torch.arange(12.0).reshape(4, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_is_the_row(dtype: torch.dtype) -> None:
    for i in range(4):
        row = ops.table_row(TABLE.to(dtype), torch.tensor([i]))
        assert row.dtype == dtype and torch.equal(row, TABLE[i : i + 1].to(dtype))


def test_opcheck() -> None:
    torch.library.opcheck(torch.ops.fastddpm.table_row.default, (TABLE, torch.tensor([2])))


def test_stays_one_op_in_a_graph() -> None:
    graphs = []

    def keep(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    @torch.compile(backend=keep, fullgraph=True)
    def halves(i: Tensor) -> tuple[Tensor, ...]:
        return ops.table_row(TABLE, i).split([1, 2], dim=1)

    first, second = halves(torch.tensor([3]))
    assert first.item() == 9 and second.tolist() == [[10, 11]]
    targets = [str(node.target) for node in graphs[0].graph.nodes]
    assert targets.count("fastddpm.table_row.default") == 1


def test_what_it_does_not_take() -> None:
    for table, i in ((TABLE[0], [1]), (TABLE, [1, 2]), (TABLE, [1.0])):
        with pytest.raises(ValueError, match="expected a table"):
            ops.table_row(table, torch.tensor(i))
    with pytest.raises(IndexError):
        ops.table_row(TABLE, torch.tensor([4]))
