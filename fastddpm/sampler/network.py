"""The model in its place: on the device, in the dtype and in the form that an engine runs.

A ``fastddpm.UNet`` that an engine compiles, captures or records runs with the time embedding of all
T steps in one table (unet_network.py); anything else is called as model(x, t).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import chain
from typing import Protocol

import torch
from torch import Tensor, nn

from fastddpm.engine import Fingerprint, Selection
from fastddpm.sampler.model import (
    Model,
    copy_weights,
    dtype_of,
    native,
    placed,
    unet_of,
    unwrapped,
)
from fastddpm.sampler.place import Place
from fastddpm.sampler.unet_network import PackedNetwork, PlainNetwork


class Network(Protocol):
    """A model in its place, on the device and in the dtype it computes in."""

    @property
    def modules(self) -> Sequence[nn.Module]:
        """What is in evaluation mode around a run."""
        ...

    @property
    def fused(self) -> bool:
        """Whether it is made of large kernels: see ``fastddpm.engine.Plan``."""
        ...

    def input_buffer(self, shape: tuple[int, ...]) -> Tensor | None:
        """Where the network reads its input for states of this shape [B, C, H, W], zeros; None if
        it reads the state itself."""
        ...

    def __call__(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """The output for x as ``input_buffer`` tells and timesteps t [B]; floating."""
        ...

    def condition(self, labels: Tensor | None, batch: int) -> Tensor | None:
        """What ``at_step`` takes of the labels [B, ...] of a batch, computed once a chain:
        [B, ...], or None. ValueError where labels are missing, or too many."""
        ...

    def at_step(self, x: Tensor, i: Tensor, condition: Tensor | None) -> Tensor:
        """The output at step i of the chain, int64 [1]."""
        ...

    def over(self, timesteps: Tensor) -> Network:
        """The same network, of the same weights, for a chain over other timesteps."""
        ...

    def settle(self) -> None:
        """An engine has just run it to prepare a step: what the model changed of itself by that is
        no change of its weights."""
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
        self.model = placed(self._source, self._device, self._asked)
        self._dtype = self._asked or dtype_of(self._source)
        self._weights = Fingerprint.of(self._source, values=True)

    @property
    def modules(self) -> Sequence[nn.Module]:
        return list(self.model.modules()) if isinstance(self.model, nn.Module) else []

    @property
    def fused(self) -> bool:
        return False

    def input_buffer(self, shape: tuple[int, ...]) -> Tensor | None:
        if self._dtype not in (torch.bfloat16, torch.float16):
            return None
        return torch.zeros(shape, dtype=self._dtype, device=self._device)

    def condition(self, labels: Tensor | None, batch: int) -> Tensor | None:
        return labels

    def at_step(self, x: Tensor, i: Tensor, condition: Tensor | None) -> Tensor:
        t = self._timesteps.index_select(0, i).expand(x.shape[0])
        return native(self(x, t, condition))

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
        return output

    def over(self, timesteps: Tensor) -> CallableNetwork:
        other = copy.copy(self)
        other._timesteps = timesteps
        return other

    def refresh(self, *, reread: bool) -> bool:
        if reread:
            # A model that is computed by a U-Net keeps a copy of its weights, too.
            unet_of(self._source, reread=True)
        if self._weights.moved():
            return True
        source, copied = self._source, self.model
        if not isinstance(source, nn.Module) or not isinstance(copied, nn.Module):
            return False
        if copied is source:
            return False
        written = self._weights.changed()
        if written is not None and written not in _weight_names(source):
            return True
        if reread or written is not None:
            self._weights = Fingerprint.of(source, values=True)
            copy_weights(source, copied)
        return False

    def settle(self) -> None:
        self._weights.settle()


def _weight_names(module: nn.Module) -> set[str]:
    """Of what ``copy_weights`` copies."""
    return {name for name, _ in chain(module.named_parameters(), module.named_buffers())}


def network_of(
    model: Model,
    device: torch.device,
    dtype: torch.dtype | None,
    timesteps: Tensor,
    engine: Selection,
) -> Network:
    """The network of any model in the form that the engine runs."""
    model = unwrapped(model)
    if unet_of(model) is not None:
        if engine.captures:
            return PackedNetwork(model, device, dtype, timesteps)
        if engine.name == "cpu":
            return PlainNetwork(model, device, timesteps)
    return CallableNetwork(model, device, dtype, timesteps)


class Networks:
    """One model's networks for its chains, which share its weights."""

    def __init__(self, model: Model, place: Place) -> None:
        self._model = model
        self._place = place
        self._first: Network | None = None

    def of(self, timesteps: Tensor) -> Network:
        """For a chain over these timesteps, [S] on the device."""
        if self._first is None or self._first.refresh(reread=True):
            place = self._place
            given = (self._model, place.device, place.dtype, timesteps, place.engine)
            self._first = network_of(*given)
            return self._first
        return self._first.over(timesteps)
