"""The memory layout of an op's results: channels_last if its first argument is, else contiguous.

The fake implementations and the real ones follow this one rule, whichever backend runs, so that a
compiled graph knows the strides it will get.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def is_channels_last(x: Tensor) -> bool:
    """Whether x is [B, C, H, W] with the channels of a position side by side."""
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)


def empty_as(x: Tensor, shape: Sequence[int] | None = None) -> Tensor:
    """An empty tensor of this shape (x's own by default) in the layout and dtype of x."""
    layout = torch.channels_last if is_channels_last(x) else torch.contiguous_format
    sizes = x.shape if shape is None else shape
    return torch.empty(sizes, dtype=x.dtype, device=x.device, memory_format=layout)


def laid_out_as(x: Tensor, result: Tensor) -> Tensor:
    """The result in the layout and dtype of x; copied only if it is not so already."""
    out = empty_as(x, result.shape)
    fits = out.stride() == result.stride() and out.dtype == result.dtype
    return result if fits else out.copy_(result)
