"""A ``fastddpm.UNet`` as a chain runs it: the time embedding of all its steps in one table.

    rows(i) = time_rows(timesteps[i])                        [T, R], filled before the chain
            = W a(embedding(timesteps[i]) + class) + b       with labels: [T, E], [B, E]

``PackedNetwork`` runs a copy whose weights lie as a GPU reads them best, ``PlainNetwork`` the U-Net
as it is, from whose weights an engine makes its own copy (time rows: time_rows.py).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastddpm import ops
from fastddpm.engine import Fingerprint
from fastddpm.sampler.model import Model, copy_weights, dtype_of, native, placed, unet_of
from fastddpm.sampler.time_rows import TimeRows, one_by_one
from fastddpm.unet import PackedUNet, UNet
from fastddpm.unet.activation import ACTIVATIONS

if TYPE_CHECKING:
    from typing_extensions import Self


def unfit_for_programs(model: Model, dtype: torch.dtype | None) -> str | None:
    """Why the CPU engine cannot take the model's chains, as far as that can be told beforehand."""
    unet = unet_of(model)
    if unet is None:
        kind = getattr(model, "__name__", type(model).__name__)
        return f"it takes a fastddpm.UNet, not {kind} (fastddpm.accelerate converts what it can)"
    dtype, config = dtype or dtype_of(unet), unet.config
    if dtype != torch.float32:
        return f"it computes in float32, the network in {dtype}"
    if config.dims != 2:
        return f"its maps have two dimensions, the network's {config.dims}"
    if ACTIVATIONS[config.act_fn] is not F.silu:
        return f"its activation is SiLU, the network's {config.act_fn!r}"
    return None


class _TabledNetwork:
    """What both have: a U-Net in its place, and its table.

    unet:      where the weights' storages stay.
    timesteps: [T] on the device, what the network is given as t at each step.
    """

    def __init__(self, unet: UNet, timesteps: Tensor) -> None:
        self._unet = unet
        self._timesteps = timesteps
        self._reads_t = unet.config.time_embedding_type == "fourier"
        self._t = timesteps.float()[:, None]  # [T, 1]
        self._table = self._filled()

    def _filled(self) -> Tensor:
        """[T, R], or [T, E] where labels enter the embedding."""
        conditional = self._unet.config.is_conditional
        of = self._unet.embedded_times if conditional else self._unet.time_rows
        return of(self._timesteps).detach()

    def _refill(self) -> None:
        self._table.copy_(self._filled())

    def settle(self) -> None:
        """A U-Net changes nothing of itself."""

    def over(self, timesteps: Tensor) -> Self:
        """The same network with the table of other timesteps."""
        other = copy.copy(self)
        _TabledNetwork.__init__(other, self._unet, timesteps)
        return other

    def condition(self, labels: Tensor | None, batch: int) -> Tensor | None:
        """The labels' part of the time embedding, [B, E]."""
        return self._unet.embedded_labels(labels, batch)

    def at_step(self, x: Tensor, i: Tensor, condition: Tensor | None) -> Tensor:
        row = ops.table_row(self._table, i).expand(x.shape[0], -1)
        rows = row if condition is None else self._rows_of(row + condition)
        # Only a network with Fourier features reads t besides; for others a launch is saved.
        t = ops.table_row(self._t, i).reshape(1) if self._reads_t else self._timesteps[:1]
        return native(self._unet.denoise(x, rows, t))

    def _rows_of(self, embedding: Tensor) -> Tensor:
        return self._unet.rows_of(embedding)


class PackedNetwork(_TabledNetwork):
    """A U-Net's packed copy. Its storages stay where they are, so changed weights never void a
    capture."""

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
        self._packed = PackedUNet(unet, device, self._dtype)
        self._weights = Fingerprint.of(unet)
        super().__init__(self._packed, timesteps)

    @property
    def modules(self) -> Sequence[nn.Module]:
        # The copy is in evaluation mode for good.
        return ()

    @property
    def fused(self) -> bool:
        # The kernels of a GPU read channels_last.
        return self._packed.channels_last

    def input_buffer(self, shape: tuple[int, ...]) -> Tensor | None:
        packed = self._packed
        if self._dtype == torch.float32 and not packed.channels_last:
            return None
        form = torch.channels_last if packed.channels_last else torch.contiguous_format
        whole = (shape[0], packed.input_channels, *shape[2:])
        buffer = torch.zeros(whole, dtype=self._dtype, device=self._device)
        return buffer.contiguous(memory_format=form)

    def __call__(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        return native(self._packed.denoise(x, self._packed.time_rows(t, labels), t))

    def refresh(self, *, reread: bool) -> bool:
        unet = unet_of(self._source, reread=reread)
        assert unet is not None
        if reread or self._weights.changed():
            self._packed.refresh(unet)
            self._weights = Fingerprint.of(unet)
            self._refill()
        return False


class PlainNetwork(_TabledNetwork):
    """The U-Net itself in float32, or a copy of it where it is on another device or in another
    dtype. The projections of all residual blocks lie in one matrix where labels need them."""

    def __init__(self, model: Model, device: torch.device, timesteps: Tensor) -> None:
        unet = unet_of(model)
        assert unet is not None
        self._source = model
        self._weights = Fingerprint.of(unet)
        own: Any = placed(unet, device, torch.float32)
        self._copy = None if own is unet else own
        self._time_rows = TimeRows(own) if own.config.is_conditional else None
        super().__init__(own, timesteps)

    @property
    def modules(self) -> Sequence[nn.Module]:
        return list(self._unet.modules())

    @property
    def fused(self) -> bool:
        return False

    @property
    def out_channels(self) -> int:
        return self._unet.config.out_channels

    def input_buffer(self, shape: tuple[int, ...]) -> Tensor | None:
        return None

    def __call__(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        return self.denoise(x, self.embedded(t, labels), t)

    def embedded(self, t: Tensor, labels: Tensor | None) -> Tensor:
        """What ``denoise`` takes, [B, E] or for all the same [1, E]; a chain without labels needs
        none."""
        self._time_rows = self._time_rows or TimeRows(self._unet)
        return self._time_rows.embedded(t, labels)

    def condition(self, labels: Tensor | None, batch: int) -> Tensor | None:
        if labels is None:
            return super().condition(labels, batch)
        return one_by_one(lambda label: self._unet.embedded_labels(label, 1), [labels])

    def denoise(self, x: Tensor, embedding: Tensor, t: Tensor) -> Tensor:
        """The output for x [B, C, H, W]."""
        return self._unet.denoise(x, self._rows_of(embedding), t)

    def refresh(self, *, reread: bool) -> bool:
        unet = unet_of(self._source, reread=reread)
        assert unet is not None
        if not self._weights.changed() and not reread:
            return False
        if self._weights.moved():
            return True
        self._weights = Fingerprint.of(unet)
        if self._copy is not None:
            copy_weights(unet, self._copy)
        if self._time_rows is not None:
            self._time_rows.refresh()
        self._refill()
        return False

    def _rows_of(self, embedding: Tensor) -> Tensor:
        assert self._time_rows is not None
        return self._time_rows.of(embedding)
