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
from fastddpm.ops.backends import choose_backend, triton_unsupported
from fastddpm.ops.library import cpu_library, unsupported_tensors
from fastddpm.ops.registry import register


def normal(
    seed: int | Tensor,
    indices: Tensor,
    step: int | Tensor,
    shape: Sequence[int],
    purpose: Purpose | int,
    *,
    device: torch.device | str | None = None,
    backend: str = "auto",
) -> Tensor:
    """Standard normal noise of the samples `indices` at one timestep.

    Args:
        seed: in [0, 2^64), or an int64 tensor [1] (`noise.seed_tensor`), read where it lies.
        indices: int64 [B], the sample indices.
        step: the original timestep index in [0, 2^24): a number, or an int64 tensor [1] or [B].
        shape: shape of one sample, for instance (C, H, W).
        purpose: the stream to draw from.
        device: where to draw; by default the device of `indices`.
        backend: "auto", "reference", "cpu" or "triton".

    Returns:
        float32 [B, *shape], contiguous.

    Raises:
        ValueError: an argument out of its range or of another shape or dtype; a backend asked for
            by name that cannot run this call.
    """
    noise.check_draw(seed, indices, step, purpose)
    sizes = noise.check_shape(shape)
    place = indices.device if device is None else torch.device(device)
    key = seed.to(place) if isinstance(seed, Tensor) else noise.seed_tensor(seed, place)
    steps = torch.as_tensor(step, dtype=torch.int64, device=place).reshape(-1)
    z: Tensor = _normal(key, indices.to(place), steps, sizes, int(purpose), backend)
    return z


# ---- the registered op


def _run(
    seed: Tensor, indices: Tensor, steps: Tensor, shape: list[int], purpose: int, backend: str
) -> Tensor:
    tensors = {"seed": seed, "indices": indices, "steps": steps}
    reasons = {
        "cpu": unsupported_tensors(tensors),
        "triton": triton_unsupported(tensors) or _triton_unsupported(shape),
    }
    chosen = choose_backend("normal", backend, indices.device, reasons)
    if chosen == "reference":
        return noise.normal(seed, indices, steps, shape, purpose)
    out = _fake(seed, indices, steps, shape, purpose, backend)
    fill = _triton if chosen == "triton" else _cpu
    fill(out, seed, indices.contiguous(), steps.contiguous(), purpose)
    return out


def _fake(
    seed: Tensor, indices: Tensor, steps: Tensor, shape: list[int], purpose: int, backend: str
) -> Tensor:
    return indices.new_empty((len(indices), *shape), dtype=torch.float32)


_normal = register(
    "normal(Tensor seed, Tensor indices, Tensor steps, SymInt[] shape, int purpose, str backend) "
    "-> Tensor",
    _run,
    _fake,
)


def _cpu(out: Tensor, seed: Tensor, indices: Tensor, steps: Tensor, purpose: int) -> None:
    cpu_library().call(
        "fastddpm_normal",
        *(out.data_ptr(), indices.data_ptr(), len(indices), math.prod(out.shape[1:])),
        # The C ABI takes the seed's 64 bits without a sign.
        int(seed) & 0xFFFFFFFFFFFFFFFF,
        *(steps.data_ptr(), len(steps), purpose, torch.get_num_threads()),
    )


def _triton(out: Tensor, seed: Tensor, indices: Tensor, steps: Tensor, purpose: int) -> None:
    from fastddpm.kernels.normal import triton_kernel

    triton_kernel.launch(out, seed, indices, steps, purpose).run()


def _triton_unsupported(shape: Sequence[int]) -> list[str]:
    from fastddpm.kernels.normal import triton_kernel

    reasons: list[str] = triton_kernel.unsupported(tuple(shape))
    return reasons
