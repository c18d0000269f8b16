"""The model as the sampler calls it: any callable, any output convention, float32 in and out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

Model = Callable[..., Any]


class Network:
    """``network(x, t, labels) -> output``, float32 in and out, around a model that may differ in
    each point.

    A module on another device or in another dtype than asked for is copied, so that the caller's
    own stays as it is; weights changed later need a new Network (the sampler makes one for every
    call).

    model: ``(x [B, ...], t int64 [B])`` and, if labels are given, ``labels`` [B, ...] as a third
           positional argument; returns a tensor, or an object with the tensor in ``.sample``
           (diffusers).
    dtype: what the model computes in; None is its own.
    """

    def __init__(
        self, model: Model, device: torch.device, dtype: torch.dtype | None = None
    ) -> None:
        self.model = _placed(model, device, dtype)
        self.dtype = dtype or dtype_of(model)

    def __call__(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        x = x.to(self.dtype)
        output = self.model(x, t) if labels is None else self.model(x, t, labels)
        if not isinstance(output, Tensor):
            output = output.sample
        return cast(Tensor, output).float()


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """No gradients and evaluation mode (no dropout) inside; every module's own mode is restored
    after."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


def device_of(model: Model, device: torch.device | str | None) -> torch.device:
    """The device asked for, else the model's, else the CPU. ValueError where there is no such
    device."""
    if device is None:
        tensors = _floating(model)
        return tensors[0].device if tensors else torch.device("cpu")
    wanted = torch.device(device)
    if wanted.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device {str(wanted)!r} was asked for, but this torch sees no CUDA device"
        )
    # "cuda" means the current device; a tensor there knows its number.
    return torch.empty(0, dtype=torch.float32, device=wanted).device


def dtype_of(model: Model) -> torch.dtype:
    """The dtype of the model's weights; float32 for a plain function."""
    tensors = _floating(model)
    return tensors[0].dtype if tensors else torch.float32


def sample_shape(model: Model) -> tuple[int, ...] | None:
    """(C, H, W) as the model's config tells it, or None. Reads our config and diffusers' alike."""
    config = getattr(model, "config", None)
    channels = getattr(config, "in_channels", None)
    size = getattr(config, "sample_size", None)
    if channels is None or size is None:
        return None
    sizes = (size,) * getattr(config, "dims", 2) if isinstance(size, int) else tuple(size)
    return (channels, *sizes)


def _floating(model: Model) -> list[Tensor]:
    if not isinstance(model, nn.Module):
        return []
    return [p for p in (*model.parameters(), *model.buffers()) if p.is_floating_point()]


def _placed(model: Model, device: torch.device, dtype: torch.dtype | None) -> Model:
    if not isinstance(model, nn.Module):
        return model
    if all(p.device == device and dtype in (None, p.dtype) for p in _floating(model)):
        return model
    return copy.deepcopy(model).to(device=device, dtype=dtype)
