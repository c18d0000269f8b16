"""Accelerated: a network that answers as another one does, run by an engine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fastddpm import engine as engines
from fastddpm.engine import CpuOptions, Fingerprint
from fastddpm.sampler.call import NetworkCall
from fastddpm.sampler.model import Model, device_of, dtype_of, unet_of
from fastddpm.sampler.place import Place
from fastddpm.sampler.unet_network import unfit_for_programs
from fastddpm.unet import UNet
from fastddpm.unet.copying import copy_into


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
            own, weights = unet.state_dict(), self._reader.weights(self.source)
            copy_into(own.values(), (weights[name] for name in own))
            self._weights = Fingerprint.of(self.source)
        return self._unet[0]

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        y: Tensor = self.current_unet()(x, t, labels)
        return y


class Accelerated(nn.Module):
    """``source`` as a drop-in that an engine runs, in evaluation mode and without gradients.

    Its weights are the source's, and what changes there is taken over: at the next call what torch
    counts as a change; what it does not count (writes through ``parameter.data``, fused optimizers)
    when a chain begins, which shows in a timestep not below the last, or after ``refresh``. Moving,
    casting or loading it moves, casts or loads the source; attributes that it does not have
    (config, image_size, ...) are the source's. Threads that call it take turns; it is for one CUDA
    stream at a time. A Sampler made of it chooses an engine of its own.

    source:  the model that it stands for.
    network: what runs: the source, or its ``Converted``. Called as (x [B, C, H, W], t [B]) or, with
             labels [B, ...], as (x, t, labels).
    engine, device, dtype, tf32: as ``fastddpm.Sampler``'s; without a device or a dtype it follows
             the source when that is moved.
    options: of the CPU engine.
    """

    source: Any

    def __init__(
        self,
        source: Model,
        network: Model,
        engine: str,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        *,
        tf32: bool = False,
        options: CpuOptions | None = None,
    ) -> None:
        super().__init__()
        self.source = source
        self._options = options
        # In a tuple, so that nothing of it is registered twice.
        self._network = (network,)
        self._asked = engine, device, dtype, tf32
        self._place: tuple[torch.device, torch.dtype] | None = None
        self._last_t = -math.inf
        self._ready()

    def forward(self, x: Tensor, t: Tensor | float, labels: Tensor | None = None) -> Any:
        """The source's output, a tensor in the dtype of x.

        x: [B, C, H, W]. t: [B], or one number for all. labels: [B, ...] if the source takes them.

        Raises ValueError for a t of another shape, or a source that returns something else.
        """
        run, begins = self._ready(), self._begins(t)
        t = torch.as_tensor(t, device=x.device)
        if t.shape not in ((), (1,), x.shape[:1]):
            raise ValueError(f"t must be one number or of shape {list(x.shape[:1])}, got {t.shape}")
        return run(x, t.expand(x.shape[0]), labels, reread=begins)

    def refresh(self) -> None:
        """Read the source's weights anew at the next call."""
        self._last_t = -math.inf

    def unwrapped(self) -> Model:
        """What runs: the source, or its ``Converted``."""
        return self._network[0]

    def current_unet(self, *, reread: bool = False) -> UNet | None:
        """The fastddpm.UNet that runs; None if the source runs as it is. reread: as in
        ``Converted.current_unet``."""
        return unet_of(self._network[0], reread=reread)

    def explain(self) -> str:
        """Which network and which engine run, and why not the others."""
        self._ready()
        kind = type(self.source).__name__
        what = "as it is" if self.current_unet() is None else "as a fastddpm.UNet"
        lines = [f"network: {kind} {what}", f"engine: {self._engine.name}", *self._engine.report()]
        lines += [f"not {name}: {why}" for name, why in self._engine.others.items()]
        return "\n".join(lines + self._engine.notes)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The source's."""
        return self.source.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The source's."""
        return self.source.load_state_dict(*args, **kwargs)

    def _ready(self) -> NetworkCall:
        """The prepared call where the source is now."""
        engine, device, dtype, tf32 = self._asked
        place = device_of(self.source, device), dtype or dtype_of(self.source)
        if place != self._place:
            unfit = unfit_for_programs(self._network[0], dtype)
            self._engine = engines.select(engine, place[0], self._options, unfit=unfit)
            where = Place(self._engine, place[0], dtype, tf32)
            self._run = NetworkCall(self._network[0], where)
            # Last: a place that was refused is refused again.
            self._place = place
        return self._run

    def _begins(self, t: Tensor | float) -> bool:
        """Whether t is not below the last one, as when a chain begins; a t on a device, for which
        the host would have to wait, counts as going on."""
        if isinstance(t, Tensor) and t.device.type != "cpu":
            begins, self._last_t = self._last_t == -math.inf, max(self._last_t, 0.0)
            return begins
        values = torch.as_tensor(t).reshape(-1).tolist()
        highest = max(values, default=self._last_t)
        begins, self._last_t = highest >= self._last_t, highest
        return begins

    def __getstate__(self) -> dict[str, Any]:
        """Without what is prepared: it belongs to this process and this object."""
        return {**self.__dict__, "_place": None, "_run": None, "_engine": None}

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "source" or name[:2] == "__":
                raise
            return getattr(self.source, name)
