"""What a capture forbids, told from an op's schema, tags and arguments.

Stricter than CUDA in two points, because the chain wants neither: random numbers (CUDA allows the
default generator) and host tensors made from Python values (CUDA allows them as scalars).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# With integers as indices the shape is known.
INDEXING = ("aten::index", "aten::_index_put_impl_")
MAKES_HOST_TENSOR = "aten::lift_fresh"
# Attention draws only for dropout; its tag does not know.
DROPOUT_ARGUMENT = "dropout_p"


def waits(func: torch._ops.OpOverload, args: tuple[Any, ...]) -> str | None:
    """Why the op makes the host wait for the device, or None."""
    name = func._schema.name
    if torch.Tag.data_dependent_output in func.tags:
        return "it reads a value on the host"
    if name.startswith(INDEXING):
        return "a mask has to be counted" if _masks(args) else None
    if torch.Tag.dynamic_output_shape in func.tags:
        return "the shape of its output depends on values"
    if name == MAKES_HOST_TENSOR:
        return "it copies from unpinned host memory"
    return None


def draws(func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the op uses torch's random generator."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return False
    names = [argument.name for argument in func._schema.arguments]
    if DROPOUT_ARGUMENT not in names:
        return True
    given = dict(zip(names, args, strict=False)) | kwargs
    return bool(given.get(DROPOUT_ARGUMENT, 0.0))


def _masks(args: tuple[Any, ...]) -> bool:
    """Whether an index list holds a mask; writing one number through one needs no counting."""
    if len(args) > 2 and isinstance(args[2], Tensor) and args[2].numel() == 1:
        return False
    lists = [argument for argument in args if isinstance(argument, list | tuple)]
    return any(
        isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)
        for indices in lists
        for index in indices
    )
