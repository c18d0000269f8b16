"""Counter-based standard normal noise. Specification: fastddpm/noise.py.

The backends agree bit for bit, so which one runs never shows in a sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastddpm import noise
from fastddpm.noise import Purpose
from fastddpm.ops.library import choose_backend, cpu_library, unsupported_tensors


def normal(
    seed: int,
    indices: Tensor,
    step: int | Tensor,
    shape: Sequence[int],
    purpose: Purpose,
    *,
    device: torch.device | str | None = None,
    backend: str = "auto",
) -> Tensor:
    """Standard normal noise of the samples `indices` at one timestep.

    Args:
        seed: in [0, 2^64).
        indices: int64 [B], the sample indices.
        step: the original timestep index in [0, 2^24): a number, or an int64 tensor [1] or [B].
        shape: shape of one sample, for instance (C, H, W).
        purpose: the stream to draw from.
        device: where to draw; by default the device of `indices`.
        backend: "auto", "reference" or "cpu".

    Returns:
        float32 [B, *shape], contiguous.

    Raises:
        ValueError: an argument out of its range or of another shape or dtype; a backend asked for
            by name that cannot run this call.
    """
    if device is not None:
        indices = indices.to(device)
    if choose_backend("normal", backend, unsupported(indices)) == "reference":
        return noise.normal(seed, indices, step, shape, purpose)
    noise.check_draw(seed, indices, step, purpose)
    sizes = noise.check_shape(shape)
    indices = indices.contiguous()
    steps = torch.as_tensor(step, dtype=torch.int64, device="cpu").reshape(-1).contiguous()
    out = torch.empty((len(indices), *sizes), dtype=torch.float32, device="cpu")
    cpu_library().call(
        "fastddpm_normal",
        *(out.data_ptr(), indices.data_ptr(), len(indices), math.prod(sizes), seed),
        *(steps.data_ptr(), len(steps), int(purpose), torch.get_num_threads()),
    )
    return out


def unsupported(indices: Tensor) -> list[str]:
    """Why the CPU kernel cannot run this call; empty if it can."""
    return unsupported_tensors({"indices": indices})
