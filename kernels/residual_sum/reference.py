"""The sum at the end of a residual block, and the same resampled: the specification.

    total = x + row + residual                 (Ho et al. 2020, appendix B)
    pad     one zero row at the bottom and one zero column at the right: what Ho's stride-2
            convolution reads, which TensorFlow's "SAME" pads on one side only
    double  every position twice along each dimension: nearest-neighbour upsampling

row is [B, C], or [C], the bias of the convolution that made x. Volumes are resampled in their last
two dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

RESAMPLES = ("pad", "double")


def residual_sum(x: Tensor, *, row: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
    """x + row + residual: x, residual [B, C, *spatial]; row [B, C] or [C]. x if both are None."""
    total = x if row is None else x + per_channel(row, x)
    return total if residual is None else total + residual


def resampled(total: Tensor, resample: str) -> Tensor:
    """[B, C, H, W] -> [B, C, H + 1, W + 1] ("pad") or [B, C, 2H, 2W] ("double")."""
    changed = min(total.dim() - 2, 2)
    if resample == "pad":
        return F.pad(total, (0, 1) * changed)
    factors = [1.0] * (total.dim() - 2 - changed) + [2.0] * changed
    return F.interpolate(total, scale_factor=factors, mode="nearest")


def resampled_backward(d_resampled: Tensor, resample: str) -> Tensor:
    """The derivative of `resampled`: each position gathers those it was copied to."""
    changed = min(d_resampled.dim() - 2, 2)
    if resample == "pad":
        return F.pad(d_resampled, (0, -1) * changed)
    kept, sizes = d_resampled.shape[:-changed], d_resampled.shape[-changed:]
    pairs = d_resampled.reshape(*kept, *(n for size in sizes for n in (size // 2, 2)))
    return pairs.sum([len(kept) + 1 + 2 * k for k in range(changed)])


def per_channel(values: Tensor, x: Tensor) -> Tensor:
    """[B, C] or [C] -> the same in x's dtype with x's dimensions behind, for broadcasting."""
    return values.to(x.dtype).reshape(*values.shape, *[1] * (x.dim() - 2))


def sum_over_positions(d_total: Tensor, row: Tensor) -> Tensor:
    """The derivative for a row [B, C] or [C] of a sum it was added to; float32 or wider inside."""
    wide = torch.promote_types(d_total.dtype, torch.float32)
    others = [dim for dim in range(d_total.dim()) if dim != 1 and (dim or row.dim() == 1)]
    return (d_total.sum(others, dtype=wide) if others else d_total).to(row.dtype)
