"""Bytes that a computation moves if no cache helps.

Every op reads its inputs and writes its results. A registered op of ours counts as one, whatever
it does inside; views move nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# They make a tensor without touching its memory.
ALLOCATIONS = ("empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "detach")


class Traffic(TorchDispatchMode):
    """``with Traffic() as traffic: model(x)``; then ``traffic.bytes``."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        results = func(*args, **(kwargs or {}))
        if not (func.is_view or func._overloadpacket.__name__ in ALLOCATIONS):
            read, written = (_tensors(part) for part in ((args, kwargs), results))
            self.bytes += sum(map(_extent, (*read, *written)))
        return results


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _extent(tensor: Tensor) -> int:
    """Bytes from the first element to the last; an expanded dimension is stored once."""
    if tensor.numel() == 0:
        return 0
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return (1 + sum((size - 1) * stride for size, stride in steps)) * tensor.element_size()


def flop_of(call: Any) -> int:
    """Floating-point operations of the products and convolutions that a call makes; a multiply-add
    counts as two."""
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def attention(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_flop_count(q, k, v))

    # torch itself counts the attention of GPUs only.
    on_cpu = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}
    counter = FlopCounterMode(display=False, custom_mapping=on_cpu)
    with counter, torch.no_grad():
        call()
    return int(counter.get_total_flops())
