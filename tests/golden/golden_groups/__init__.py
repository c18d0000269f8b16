"""One module for each group of the golden sets, each with run(case, inputs, ctx)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def tensors(inputs: dict[str, Any], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The array inputs as tensors; floats in dtype if one is given."""
    result = {}
    for name, value in inputs.items():
        if not isinstance(value, dict):
            tensor = torch.tensor(value)
            result[name] = tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
    return result
