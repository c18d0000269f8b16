"""The model as a caller has it: the device and dtype it is on, the U-Net that it is or holds, and
what holds while it runs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import chain
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from fastddpm.engine import precision
from fastddpm.unet import UNet
from fastddpm.unet.copying import copy_into

Model = Callable[..., Any]


@runtime_checkable
class HasUNet(Protocol):
    """A model that may compute what a ``fastddpm.UNet`` does."""

    def current_unet(self, *, reread: bool = False) -> UNet | None:
        """That U-Net, with the weights of this moment; None if there is none. reread: as in
        ``Network.refresh``."""
        ...


@runtime_checkable
class Wrapper(Protocol):
    """A model that hands its calls on to another one; an engine runs that one itself."""

    def unwrapped(self) -> Model:
        """The other one."""
        ...


def unwrapped(model: Model) -> Model:
    """What an engine runs for it."""
    return model.unwrapped() if isinstance(model, Wrapper) else model


def _set_mode(module: nn.Module, training: bool) -> None:
    # nn.Module's own looks through parameters and parts first: 2 ms for a large network. Scripted
    # modules have another, and their mode elsewhere.
    if type(module).__setattr__ is nn.Module.__setattr__:
        object.__setattr__(module, "training", training)
    else:
        module.training = training


@contextmanager
def evaluated(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Evaluation mode (no dropout) inside; each module's own mode is restored."""
    trained = [module for module in modules if module.training]
    try:
        for module in trained:
            _set_mode(module, False)
        yield
    finally:
        for module in trained:
            _set_mode(module, True)


@contextmanager
def isolated(device: torch.device, *, tf32: bool) -> Iterator[None]:
    """No gradients, and no precision but the one asked for, whatever the caller has around it.

    A graph that is captured under a caller's autocast would be replayed outside of it, and in an
    inference mode every buffer would be a tensor that may be written only there.
    """
    kind = device.type
    cast = torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()
    with torch.inference_mode(False), torch.no_grad(), cast, precision(tf32=tf32):
        yield


def device_of(model: Model, device: torch.device | str | None) -> torch.device:
    """The device asked for, else the model's, else the CPU. ValueError where there is no such
    device."""
    if device is None:
        first = next(_floating(model), None)
        return torch.device("cpu") if first is None else first.device
    try:
        wanted = torch.device(device)
    # A name that is none, and what is no name.
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"device: expected cpu, cuda, cuda:1, mps or another of torch's, got {device!r}"
        ) from error
    if wanted.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device {str(wanted)!r} was asked for, but this torch sees no CUDA device"
        )
    # "cuda" means the current device; a tensor there knows its number.
    return torch.empty(0, dtype=torch.float32, device=wanted).device


def dtype_of(model: Model) -> torch.dtype:
    """The dtype of the model's weights; float32 for a plain function."""
    first = next(_floating(model), None)
    return torch.float32 if first is None else first.dtype


def sample_shape(model: Model) -> tuple[int, ...] | None:
    """(C, H, W) as the model's config tells it, or None. Reads our config and diffusers' alike."""
    config = getattr(model, "config", None)
    channels = getattr(config, "in_channels", None)
    size = getattr(config, "sample_size", None)
    if channels is None or size is None:
        return None
    sizes = (size,) * getattr(config, "dims", 2) if isinstance(size, int) else tuple(size)
    return (channels, *sizes)


def unet_of(model: Model, *, reread: bool = False) -> UNet | None:
    """The U-Net that the model is or computes, or None; reread: as in ``Network.refresh``."""
    if isinstance(model, UNet):
        return model
    return model.current_unet(reread=reread) if isinstance(model, HasUNet) else None


def native(output: Tensor) -> Tensor:
    """The output in a dtype that the device's step kernel reads."""
    return output.float() if output.device.type == "cpu" else output


def _floating(model: Model) -> Iterator[Tensor]:
    """Its floating tensors; the first is all that a call of an accelerated model looks at."""
    if isinstance(model, nn.Module):
        yield from (p for p in chain(model.parameters(), model.buffers()) if p.is_floating_point())


def copy_weights(source: nn.Module, copy: nn.Module) -> None:
    """The weights of one into the storages of the other: a captured graph goes on seeing them."""
    own, their = (chain(m.parameters(), m.buffers()) for m in (copy, source))
    copy_into(own, their)


def placed(model: Model, device: torch.device, dtype: torch.dtype | None) -> Model:
    """The model itself where it is on the device and in the dtype (None: any), else a copy."""
    if not isinstance(model, nn.Module):
        return model
    if all(p.device == device and dtype in (None, p.dtype) for p in _floating(model)):
        return model
    return copy.deepcopy(model).to(device=device, dtype=dtype)
