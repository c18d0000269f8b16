"""Accelerated: a network that answers as another one does, run by an engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fastddpm import engine as engines
from fastddpm.engine import Fingerprint
from fastddpm.sampler.call import NetworkCall
from fastddpm.sampler.network import Model, device_of, dtype_of, unet_of
from fastddpm.unet import UNet


class Reader(Protocol):
    """How a family's model becomes a fastddpm.UNet."""

    def unet(self, model: nn.Module) -> UNet:
        """The same network, in float32 on the CPU."""
        ...

    def weights(self, model: nn.Module) -> Mapping[str, Tensor]:
        """The model's state dict under our names."""
        ...


class Converted(nn.Module):
    """``source`` computed by a fastddpm.UNet, which takes over weights that change in it."""

    def __init__(self, source: nn.Module, reader: Reader) -> None:
        super().__init__()
        self.source = source
        self._reader = reader
        # In a tuple, so that it is no submodule: this module's weights are the source's.
        self._unet = (reader.unet(source).to(device_of(source, None), dtype_of(source)),)
        self._weights = Fingerprint.of(source)

    def current_unet(self, *, reread: bool = False) -> UNet:
        """The U-Net with the source's weights of this moment, on its device and in its dtype.

        reread: copy them even if they seem unchanged, as after a write to ``parameter.data``, which
        torch does not count.
        """
        if reread or self._weights.changed():
            tensors = next(self.source.parameters())
            unet = self._unet[0].to(tensors.device, tensors.dtype)
            unet.load_state_dict(self._reader.weights(self.source))
            self._weights = Fingerprint.of(self.source)
        return self._unet[0]

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        y: Tensor = self.current_unet()(x, t, labels)
        return y


class Accelerated(nn.Module):
    """``source`` as a drop-in that an engine runs, in evaluation mode and without gradients.

    Its weights are the source's: what changes there is taken over at the next call (but what is
    written through ``parameter.data`` only by a Sampler, since torch does not count it). Attributes
    that it does not have (config, image_size, ...) are the source's too.

    source:  the model that it stands for.
    network: what runs: the source, or its ``Converted``. Called as (x [B, C, H, W], t [B]) or, with
             labels [B, ...], as (x, t, labels).
    engine, device, dtype, tf32: as ``fastddpm.Sampler``'s.
    """

    source: Any

    def __init__(
        self,
        source: Model,
        network: Model,
        engine: str,
        device: torch.device,
        dtype: torch.dtype | None,
        *,
        tf32: bool = False,
    ) -> None:
        super().__init__()
        self.source = source
        self._engine = engines.select(engine, device)
        # In a tuple, so that nothing of it is registered twice.
        self._network = (network,)
        self._run = NetworkCall(network, self._engine, device, dtype, tf32=tf32)

    def forward(self, x: Tensor, t: Tensor | float, labels: Tensor | None = None) -> Any:
        """The source's output, a tensor in the dtype of x.

        x: [B, C, H, W]. t: [B], or one number for all. labels: [B, ...] if the source takes them.
        """
        t = torch.as_tensor(t, device=x.device)
        return self._run(x, t.expand(x.shape[0]), labels)

    def current_unet(self, *, reread: bool = False) -> UNet | None:
        """The fastddpm.UNet that runs; None if the source runs as it is. reread: as in
        ``Converted.current_unet``."""
        return unet_of(self._network[0], reread=reread)

    def explain(self) -> str:
        """Which network and which engine run, and why not the others."""
        kind = type(self.source).__name__
        what = "as it is" if self.current_unet() is None else "as a fastddpm.UNet"
        lines = [f"network: {kind} {what}", f"engine: {self._engine.name}"]
        return "\n".join(lines + [f"not {n}: {why}" for n, why in self._engine.others.items()])

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "source":
                raise
            return getattr(self.source, name)
