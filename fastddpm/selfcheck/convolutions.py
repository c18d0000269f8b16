"""conv3x3 in half precision: errors against float64.

    bound = 2 · max |the exact result, rounded to the dtype − it| + 2⁻¹⁹ · max |it|

A kernel that sums in float32 rounds once; torch on a CPU need not, so it gives no bound here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from fastddpm import ops
from fastddpm.kernels.conv3x3.cases import ALONE
from fastddpm.ops.backends import interpreting
from fastddpm.selfcheck.norms import SUMS
from fastddpm.selfcheck.outcome import Errors, Outcome, largest_difference

# Products that Triton's interpreter computes in a reasonable time.
MOST_INTERPRETED = 1 << 26


def conv3x3(backend: str, device: torch.device) -> Outcome:
    """ops.conv3x3 on maps and weights that are channels_last."""
    errors = Errors()
    # Triton's interpreter truncates to bfloat16 instead of rounding.
    dtypes = (torch.float16,) if interpreting() else (torch.float16, torch.bfloat16)
    for case in ALONE:
        if interpreting() and case.flops() > MOST_INTERPRETED:
            continue
        for dtype in dtypes:
            tensors = case.tensors(dtype)
            x, weight = (
                tensors[name].to(device).contiguous(memory_format=torch.channels_last)
                for name in ("x", "weight")
            )
            found = ops.conv3x3(x, weight, backend=backend)
            exact = ops.conv3x3(*(tensors[name].double() for name in ("x", "weight")))
            size = float(exact.abs().max()) if exact.numel() else 0.0
            rounding = largest_difference(exact.to(dtype), exact)
            bound = 2 * rounding + SUMS * size
            name = f"{case.name} {str(dtype).removeprefix('torch.')}"
            errors.add(name, largest_difference(found, exact), bound)
    return errors.outcome(f"conv3x3, {backend}")


KERNELS: dict[str, Callable[[str, torch.device], Outcome]] = {"conv3x3": conv3x3}
