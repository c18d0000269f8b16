"""Which engine, network and kernels run, in words."""

from __future__ import annotations

import torch

from fastddpm import ops
from fastddpm.engine import Selection
from fastddpm.ops.backends import triton_status
from fastddpm.sampler.model import Model, dtype_of, unet_of


def explain(
    model: Model, engine: Selection, device: torch.device, dtype: torch.dtype | None, tf32: bool
) -> str:
    """One line for what runs, one each for the network and the kernels, then what does not."""
    unet = unet_of(model)
    name = type(model).__name__
    form = "as it is" if unet is None or unet is model else "as a fastddpm.UNet"
    if unet is not None and engine.captures:
        form += ", packed"
    number = str(dtype or dtype_of(model)).removeprefix("torch.")
    products = " with TF32 products" if tf32 and device.type == "cuda" else ""
    lines = [
        f"engine: {engine.name} ({engine.what})",
        *engine.report(),
        f"network: {name} {form}, {number}{products} on {device}; chain state: float32",
        f"noise and step kernels: {_kernels(engine, device)}",
    ]
    if unet is None:
        lines.append(f"fused network kernels: none, {name} is not a fastddpm.UNet")
    lines += [f"not {other}: {reason}" for other, reason in engine.others.items()]
    return "\n".join(lines + engine.notes)


def _kernels(engine: Selection, device: torch.device) -> str:
    if engine.backend == "reference":
        return "reference, in plain torch"
    if device.type == "cpu":
        return ops.cpu_library_status()
    if device.type == "cuda":
        return triton_status()
    return f"reference, in plain torch: there are no kernels for {device.type}"
