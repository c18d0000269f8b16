"""What the channels-last kernels ask of their tensors: maps [B, C, H, W] and rows of channels."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
VECTOR_BYTES = 16


def unsupported(x: Tensor, **others: Tensor | None) -> list[str]:
    """Why no channels-last kernel can run on x and the others; empty if it can.

    Of the others, those of four dimensions are maps like x, the rest have channels last.
    """
    if x.dim() != 4:
        return [f"x has {x.dim() - 2} spatial dimensions: the kernels take two"]
    if 0 in x.shape[1:]:
        return [f"a sample of x, {list(x.shape[1:])}, has no elements"]
    tensors = {"x": x} | {name: t for name, t in others.items() if t is not None}
    reasons = [
        f"{name} is {tensor.dtype}: expected float32, bfloat16 or float16"
        for name, tensor in tensors.items()
        if tensor.dtype not in DTYPES
    ]
    reasons += [
        f"{name} is on {tensor.device}, x is on {x.device}"
        for name, tensor in tensors.items()
        if tensor.device != x.device
    ]
    for name, tensor in tensors.items():
        if tensor.dim() == 4:
            reasons += _unsupported_map(name, tensor, x)
        elif tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            reasons.append(f"the channels of {name} are not side by side")
    return reasons


def _unsupported_map(name: str, tensor: Tensor, x: Tensor) -> list[str]:
    reasons = []
    if not tensor.is_contiguous(memory_format=torch.channels_last):
        reasons.append(f"{name} is not channels_last")
    if tensor.dtype != x.dtype:
        reasons.append(f"{name} is {tensor.dtype}, x is {x.dtype}")
    if tensor.data_ptr() % VECTOR_BYTES:
        reasons.append(f"{name} does not start at a multiple of {VECTOR_BYTES} bytes")
    if tensor.shape[1:].numel() >= 2**29:
        reasons.append(f"a sample of {name} has {tensor.shape[1:].numel()} elements, 2^29 or more")
    return reasons


def sample_stride(rows: Tensor | None) -> int:
    """Elements from one sample's row to the next; 0 where all samples share one."""
    return 0 if rows is None or rows.dim() == 1 else rows.stride(0)
