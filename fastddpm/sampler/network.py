"""The model in its place: on the device, in the dtype and in the form that an engine runs.

A ``fastddpm.UNet`` that an engine compiles or captures runs as its packed copy, with the time
embedding of all T steps in one table; anything else is called as model(x, t).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from fastddpm import ops
from fastddpm.engine import Fingerprint, precision
from fastddpm.unet import PackedUNet, UNet

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


class Network(Protocol):
    """A model in its place, on the device and in the dtype it computes in.

    model: what is called; its mode is set to evaluation around a run.
    """

    @property
    def model(self) -> Model: ...

    def input_buffer(self, shape: tuple[int, ...]) -> Tensor | None:
        """Where the network reads its input for states of this shape [B, C, H, W], zeros; None if
        it reads the state itself."""
        ...

    def __call__(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """The output for x as ``input_buffer`` tells and timesteps t [B]; floating."""
        ...

    def at_step(self, x: Tensor, i: Tensor, labels: Tensor | None) -> Tensor:
        """The output at step i of the chain, int64 [1]."""
        ...

    def refresh(self, *, reread: bool) -> bool:
        """Take over weights that have changed since the last call; True if a capture made before
        still reads the old ones: it and this network must be made anew.

        reread: copy them again even if they seem unchanged. torch does not count what is written
        through ``parameter.data``, as some averages of weights are.
        """
        ...


class CallableNetwork:
    """Any callable. A module on another device or in another dtype than asked for is copied, so
    that the caller's own stays as it is.

    model:     ``(x [B, ...], t [B])`` and, if labels are given, ``labels`` [B, ...] as a third
               positional argument; returns a tensor, or an object with the tensor in ``.sample``
               (diffusers).
    dtype:     what the model computes in; None is its own.
    timesteps: [T] on the device, what the model is given as t at each step.
    """

    def __init__(
        self, model: Model, device: torch.device, dtype: torch.dtype | None, timesteps: Tensor
    ) -> None:
        self._device = device
        self._source = model
        self._asked = dtype
        self._timesteps = timesteps
        self._place()

    def _place(self) -> None:
        self.model = _placed(self._source, self._device, self._asked)
        self._dtype = self._asked or dtype_of(self._source)
        self._weights = Fingerprint.of(self._source, values=True)

    def input_buffer(self, shape: tuple[int, ...]) -> Tensor | None:
        if self._dtype not in (torch.bfloat16, torch.float16):
            return None
        return torch.zeros(shape, dtype=self._dtype, device=self._device)

    def at_step(self, x: Tensor, i: Tensor, labels: Tensor | None) -> Tensor:
        return self(x, self._timesteps.index_select(0, i).expand(x.shape[0]), labels)

    def __call__(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        x = x.to(self._dtype)
        output = self.model(x, t) if labels is None else self.model(x, t, labels)
        output = getattr(output, "sample", None) if not isinstance(output, Tensor) else output
        if not isinstance(output, Tensor) or not output.is_floating_point():
            got = output.dtype if isinstance(output, Tensor) else "something else"
            raise ValueError(
                "model(x, t) must return a floating tensor, or an object with one in .sample; "
                f"got {got}"
            )
        return _native(output)

    def refresh(self, *, reread: bool) -> bool:
        if reread:
            # A model that is computed by a U-Net keeps a copy of its weights, too.
            unet_of(self._source, reread=True)
        if self._weights.moved():
            return True
        source, copied = self._source, self.model
        if not isinstance(source, nn.Module) or not isinstance(copied, nn.Module):
            return False
        if copied is not source and (reread or self._weights.changed()):
            self._weights = Fingerprint.of(source, values=True)
            _copy_weights(source, copied)
        return False


class PackedNetwork:
    """A U-Net's packed copy, and its time rows of all steps in one table.

    The copy's storages stay where they are, so changed weights never void a capture. Labels enter
    the time embedding before its nonlinearity: with them there is no table, and the rows are
    computed in the step.

    timesteps: [T] on the device, what the network is given as t at each step.
    """

    def __init__(
        self,
        model: Model,
        device: torch.device,
        dtype: torch.dtype | None,
        timesteps: Tensor,
    ) -> None:
        unet = unet_of(model)
        assert unet is not None
        self._source = model
        self._device = device
        self._dtype = dtype or dtype_of(unet)
        self._timesteps = timesteps
        self._packed = PackedUNet(unet, device, self._dtype)
        self._weights = Fingerprint.of(unet)
        self._reads_t = unet.config.time_embedding_type == "fourier"
        self._rows = None if unet.config.is_conditional else self._table()

    @property
    def model(self) -> Model:
        # Not the copy itself: that is in evaluation mode for good.
        return self._packed.denoise

    def _table(self) -> Tensor:
        return self._packed.time_rows(self._timesteps)  # [T, R]

    def input_buffer(self, shape: tuple[int, ...]) -> Tensor | None:
        packed = self._packed
        if self._dtype == torch.float32 and not packed.channels_last:
            return None
        form = torch.channels_last if packed.channels_last else torch.contiguous_format
        whole = (shape[0], packed.input_channels, *shape[2:])
        buffer = torch.zeros(whole, dtype=self._dtype, device=self._device)
        return buffer.contiguous(memory_format=form)

    def __call__(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        return _native(self._packed.denoise(x, self._packed.time_rows(t, labels), t))

    def at_step(self, x: Tensor, i: Tensor, labels: Tensor | None) -> Tensor:
        if self._rows is None:
            return self(x, self._timesteps.index_select(0, i).expand(x.shape[0]), labels)
        rows = ops.table_row(self._rows, i).expand(x.shape[0], -1)
        # Only a network with Fourier features reads t besides; for others a launch is saved.
        t = self._timesteps.index_select(0, i) if self._reads_t else self._timesteps[:1]
        return _native(self._packed.denoise(x, rows, t))

    def refresh(self, *, reread: bool) -> bool:
        unet = unet_of(self._source, reread=reread)
        assert unet is not None
        if reread or self._weights.changed():
            self._packed.refresh(unet)
            self._weights = Fingerprint.of(unet)
            if self._rows is not None:
                self._rows.copy_(self._table())
        return False


def network_of(
    model: Model,
    device: torch.device,
    dtype: torch.dtype | None,
    timesteps: Tensor,
    *,
    packed: bool,
) -> Network:
    """The network of any model: packed if that is asked for and there is a U-Net to pack."""
    model = model.unwrapped() if isinstance(model, Wrapper) else model
    if packed and unet_of(model) is not None:
        return PackedNetwork(model, device, dtype, timesteps)
    return CallableNetwork(model, device, dtype, timesteps)


@contextmanager
def running(model: Model, device: torch.device, *, tf32: bool) -> Iterator[None]:
    """``isolated``, and evaluation mode (no dropout) inside; each module's own mode is restored."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    trained = [module for module in modules if module.training]
    try:
        for module in trained:
            module.training = False
        with isolated(device, tf32=tf32):
            yield
    finally:
        for module in trained:
            module.training = True


@contextmanager
def isolated(device: torch.device, *, tf32: bool) -> Iterator[None]:
    """No gradients, and no precision but the one asked for, whatever the caller has around it.

    A graph that is captured under a caller's autocast would be replayed outside of it, and in an
    inference mode every buffer would be a tensor that may be written only there.
    """
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast(device.type, enabled=False),
        precision(tf32=tf32),
    ):
        yield


def device_of(model: Model, device: torch.device | str | None) -> torch.device:
    """The device asked for, else the model's, else the CPU. ValueError where there is no such
    device."""
    if device is None:
        first = next(_floating(model), None)
        return torch.device("cpu") if first is None else first.device
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        message = str(error).partition("\n")[0]
        raise ValueError(f"device: expected a torch device, got {device!r} ({message})") from error
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


def _native(output: Tensor) -> Tensor:
    """The output in a dtype that the device's step kernel reads."""
    return output.float() if output.device.type == "cpu" else output


def _floating(model: Model) -> Iterator[Tensor]:
    """Its floating tensors; the first is all that a call of an accelerated model looks at."""
    if isinstance(model, nn.Module):
        yield from (p for p in chain(model.parameters(), model.buffers()) if p.is_floating_point())


@torch.no_grad()
def _copy_weights(source: nn.Module, copy: nn.Module) -> None:
    """Into the same storages: a captured graph goes on seeing them."""
    own, their = (chain(m.parameters(), m.buffers()) for m in (copy, source))
    for tensor, value in zip(own, their, strict=True):
        tensor.copy_(value)


def _placed(model: Model, device: torch.device, dtype: torch.dtype | None) -> Model:
    if not isinstance(model, nn.Module):
        return model
    if all(p.device == device and dtype in (None, p.dtype) for p in _floating(model)):
        return model
    return copy.deepcopy(model).to(device=device, dtype=dtype)
