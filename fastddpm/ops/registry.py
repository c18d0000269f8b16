"""The torch.library namespace "fastddpm": where every op defines its schema and implementations.

An op registered here is one opaque node for torch.compile and for a CUDA graph, with a fake
implementation that tells shapes and, where training needs it, a derivative.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

# torch.library.Library has no annotations.
LIBRARY: Any = torch.library.Library("fastddpm", "DEF")  # type: ignore[no-untyped-call]

# What each op runs, for those who look at it without the dispatcher (a count of its launches).
IMPLEMENTATIONS: dict[torch._ops.OpOverload, Callable[..., Any]] = {}


def register(
    schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]
) -> torch._ops.OpOverload:
    """Define an op by its schema, "name(Tensor x, ...) -> Tensor".

    ``implementation`` runs on every device; it chooses the backend by the tensors it gets.
    ``fake`` returns empty tensors of the right shapes, dtypes and strides.
    """
    # The kernels choose by the layout of what they get, so a compiler must not change that.
    tags = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
    name: str = LIBRARY.define(schema, tags=tags)
    LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastddpm::{name}", fake, lib=LIBRARY)
    op: torch._ops.OpOverload = getattr(torch.ops.fastddpm, name).default
    IMPLEMENTATIONS[op] = implementation
    return op


def register_derivative(
    op: torch._ops.OpOverload,
    backward: Callable[..., Any],
    setup_context: Callable[[Any, tuple[Any, ...], Any], None],
) -> None:
    """Give a registered op its derivative.

    ``setup_context(ctx, inputs, output)`` saves what ``backward(ctx, *gradients)`` needs, which
    returns one gradient, or None, for each argument of the schema.
    """
    torch.library.register_autograd(op, backward, setup_context=setup_context, lib=LIBRARY)
