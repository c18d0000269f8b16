"""The inference copy of a U-Net: its weights laid out for the fewest and fastest kernels.

One product gives queries, keys and values; one product gives the time rows of all residual blocks.
On a GPU the maps are channels_last and the input has its channels padded to a multiple of eight,
which tensor cores need, with zeros for weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastddpm import ops
from fastddpm.unet.attention import Attention
from fastddpm.unet.convolution import conv
from fastddpm.unet.copying import copy_into
from fastddpm.unet.levels import Level
from fastddpm.unet.unet import UNet

CHANNEL_MULTIPLE = 8


class PackedAttention(Attention):
    """Attention whose queries, keys and values are one linear function of the tokens."""

    def __init__(self, source: Attention) -> None:
        nn.Module.__init__(self)
        inner, channels = source.to_q.weight.shape
        self.heads, self.output_scale = source.heads, source.output_scale
        self.group_norm = source.group_norm
        self.to_qkv = nn.Linear(channels, 3 * inner)
        self.to_out = source.to_out

    def queries_keys_values(self, tokens: Tensor) -> tuple[Tensor, ...]:
        projected: Tensor = self.to_qkv(tokens)
        return projected.chunk(3, dim=-1)

    def projections(self) -> tuple[ops.Linear, ops.Linear, ops.Linear, ops.Linear]:
        parts = zip(self.to_qkv.weight.chunk(3), self.to_qkv.bias.chunk(3), strict=True)
        q, k, v = (ops.Linear(weight, bias) for weight, bias in parts)
        out: Any = self.to_out[0]
        return q, k, v, ops.Linear(out.weight, out.bias)


class PackedUNet(UNet):
    """A copy of a `UNet` for inference on one device in one dtype; its storages never move.

    It computes what the source computes, to rounding. The time embedding is computed in float32
    at least: it runs once for all steps of a chain.

    Args:
        unet: the source; it stays as it is.
        device, dtype: where the copy lives and what it computes in.
        channels_last: the memory format of the maps; None: channels_last for images on a GPU.
    """

    def __init__(
        self,
        unet: UNet,
        device: torch.device | str,
        dtype: torch.dtype,
        *,
        channels_last: bool | None = None,
    ) -> None:
        device, images = torch.device(device), unet.config.dims == 2
        if channels_last is None:
            channels_last = device.type == "cuda" and images
        if channels_last and not images:
            raise ValueError(f"channels_last: expected 2-D maps, got dims={unet.config.dims}")
        with torch.device("meta"):
            super().__init__(unet.config)
            self._pack(channels_last)
        self.to(dtype)
        for part in (self.time_proj, self.time_embedding, self.class_embedding, self.row_proj):
            if part is not None:
                part.to(torch.promote_types(dtype, torch.float32))
        self.to_empty(device=device)
        if channels_last:
            # torch's own annotations of Module.to lack this argument.
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._channels_last = channels_last
        self.eval().requires_grad_(False)
        self.refresh(unet)

    @property
    def channels_last(self) -> bool:
        """Whether the maps are channels_last; `denoise` is fastest on inputs that are so too."""
        return self._channels_last

    @property
    def input_channels(self) -> int:
        """Channels that `denoise` reads: the samples' own, or more of which the rest is unused."""
        return self.conv_in.in_channels

    def rows_of(self, embedding: Tensor) -> Tensor:
        rows: Tensor = self.row_proj(self.activation(embedding))
        return rows.to(self.conv_in.weight.dtype)

    def row_projection(self, out: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        own = self.row_proj.weight, self.row_proj.bias
        if out is None:
            return own
        copy_into(out, own)
        return out

    def denoise(self, x: Tensor, rows: Tensor, t: Tensor) -> Tensor:
        """As `UNet.denoise`; x has the samples' channels, or `input_channels` of them."""
        missing = self.input_channels - x.shape[1]
        if missing and x.shape[1] == self.config.in_channels:
            x = F.pad(x, (0, 0) * (x.dim() - 2) + (0, missing))
        if self._channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        return super().denoise(x, rows, t)

    def refresh(self, unet: UNet) -> None:
        """Take over the weights of `unet`, into the same storages: a captured graph sees them.

        Raises:
            ValueError: `unet` has another config.
        """
        if unet.config != self.config:
            raise ValueError(f"expected a network of {self.config}, got one of {unet.config}")
        with torch.no_grad():
            source = self._packed_state(unet)
        own = self.state_dict()
        copy_into(own.values(), (source[name] for name in own))

    def _pack(self, channels_last: bool) -> None:
        """Replace the layers that this copy has in another form."""
        for level in self.modules():
            if isinstance(level, Level):
                level.attentions = nn.ModuleList(
                    PackedAttention(layer)
                    for layer in level.attentions
                    if isinstance(layer, Attention)
                )
        for block in self.residual_blocks():
            del block.time_emb_proj
        self.row_proj = nn.Linear(self.config.time_channels, self.row_channels)
        if channels_last:
            width = -(-self.config.in_channels // CHANNEL_MULTIPLE) * CHANNEL_MULTIPLE
            self.conv_in = conv(2, width, self.config.block_out_channels[0])

    def _packed_state(self, unet: UNet) -> dict[str, Tensor]:
        """The weights of `unet` under the names and in the shapes that this copy has."""
        state = unet.state_dict()
        for name, module in unet.named_modules():
            if isinstance(module, Attention):
                for kind in ("weight", "bias"):
                    parts = [state[f"{name}.{part}.{kind}"] for part in ("to_q", "to_k", "to_v")]
                    state[f"{name}.to_qkv.{kind}"] = torch.cat(parts)
        state["row_proj.weight"], state["row_proj.bias"] = unet.row_projection()
        conv_in = state["conv_in.weight"]
        unused = self.input_channels - self.config.in_channels
        state["conv_in.weight"] = F.pad(conv_in, (0, 0) * self.config.dims + (0, unused))
        return state
