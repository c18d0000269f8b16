"""The fused multiply-add, which GPUs and CPUs round once and torch lacks, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def fused_multiply_add(a: Tensor, b: Tensor | float, c: Tensor | float) -> Tensor:
    """a b + c, rounded once to float32, of float32 tensors and numbers that float32 holds.

    The product is exact in float64 and the sum there is rounded to odd: where it is not exact, to
    the neighbour whose last bit is set. Rounding that to float32 rounds as once (Boldo and
    Melquiond 2008). It has the gradient of a b + c. A dozen passes over float64: this is a
    specification, not a fast path.
    """
    product, addend = a.double() * _double(b), _double(c)
    total = product + addend
    with torch.no_grad():
        # What the sum has lost, exactly (Knuth's TwoSum).
        added = total - product
        lost = (product - (total - added)) + (addend - added)
        toward = torch.where(lost > 0, torch.inf, -torch.inf).to(torch.float64)
        even = total.view(torch.int64) & 1 == 0
        inexact = even & (lost.abs() > 0) & total.isfinite()
        step = torch.nextafter(total, toward) - total
    # The sum itself where it is exact: −0 stays −0.
    return torch.where(inexact, total + step, total).float()


def _double(value: Tensor | float) -> Tensor | float:
    return value.double() if isinstance(value, Tensor) else value
