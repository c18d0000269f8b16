"""Residual blocks, resampling and the three kinds of level a U-Net is built from.

A residual block (Ho et al. 2020, appendix B; scale-shift and resampling inside: Dhariwal and
Nichol 2021), with a the activation:

    h = conv1(resample(a(norm1(x))))
    h = conv2(dropout(a(norm2(h + row))))                   "default":      row = W·a(temb)
    h = conv2(dropout(a((1 + scale)·norm2(h) + shift)))     "scale_shift":  scale, shift = W·a(temb)
    y = (shortcut(resample(x)) + h) / output_scale

The blocks receive a(temb), the activated time embedding, which is the same for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastddpm import ops
from fastddpm.unet.attention import Attention
from fastddpm.unet.config import UNetConfig

CONVOLUTIONS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "swish": F.silu,
    "mish": F.mish,
    "gelu": F.gelu,
    "relu": F.relu,
}


def conv(dims: int, in_channels: int, out_channels: int, size: int = 3) -> nn.Module:
    """A stride-1 convolution that keeps the spatial size, in 1, 2 or 3 dimensions."""
    return CONVOLUTIONS[dims](in_channels, out_channels, size, padding=size // 2)


def resampled_dims(dims: int) -> int:
    """How many trailing dimensions change size: all of them, but only the last two in 3-D."""
    return min(dims, 2)


def halve(x: Tensor) -> Tensor:
    """Average pooling by two: [B, C, H, W] -> [B, C, H/2, W/2]."""
    if x.dim() == 3:
        return F.avg_pool1d(x, 2)
    return F.avg_pool2d(x, 2) if x.dim() == 4 else F.avg_pool3d(x, (1, 2, 2))


def double(x: Tensor) -> Tensor:
    """Nearest-neighbour upsampling by two: [B, C, H, W] -> [B, C, 2H, 2W]."""
    scale = {3: (2.0,), 4: (2.0, 2.0), 5: (1.0, 2.0, 2.0)}[x.dim()]
    return F.interpolate(x, scale_factor=scale, mode="nearest")


class Downsample(nn.Module):
    """Halves the spatial size: a stride-2 convolution, or average pooling ("pool").

    downsample_padding 1 pads both sides (OpenAI); 0 pads right and bottom only (Ho).
    """

    def __init__(self, config: UNetConfig, channels: int) -> None:
        super().__init__()
        self.conv: nn.Module | None = None
        if config.downsample_type == "pool":
            return
        changed = resampled_dims(config.dims)
        kept = config.dims - changed
        self.pad = (0, 1) * changed if config.downsample_padding == 0 else None
        self.conv = CONVOLUTIONS[config.dims](
            channels,
            channels,
            3,
            stride=(1,) * kept + (2,) * changed,
            padding=(1,) * kept + (config.downsample_padding,) * changed,
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.conv is None:
            return halve(x)
        y: Tensor = self.conv(F.pad(x, self.pad) if self.pad else x)
        return y


class Upsample(nn.Module):
    """Doubles the spatial size: nearest neighbour, then a convolution unless "nearest"."""

    def __init__(self, config: UNetConfig, channels: int) -> None:
        super().__init__()
        learned = config.upsample_type != "nearest"
        self.conv = conv(config.dims, channels, channels) if learned else None

    def forward(self, x: Tensor) -> Tensor:
        x = double(x)
        return x if self.conv is None else self.conv(x)


class ResnetBlock(nn.Module):
    """[B, C, *spatial] and a(temb) [B, time_channels] -> [B, C', *spatial].

    `resample` "down" or "up" changes the spatial size inside the block.
    """

    def __init__(
        self,
        config: UNetConfig,
        in_channels: int,
        out_channels: int,
        *,
        resample: str | None = None,
        output_scale: float = 1.0,
    ) -> None:
        super().__init__()
        groups, eps = config.norm_num_groups, config.norm_eps
        self.scale_shift = config.resnet_time_scale_shift == "scale_shift"
        self.act_fn, self.resample, self.output_scale = config.act_fn, resample, output_scale
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = conv(config.dims, in_channels, out_channels)
        rows = 2 * out_channels if self.scale_shift else out_channels
        self.time_emb_proj = nn.Linear(config.time_channels, rows)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=eps)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = conv(config.dims, out_channels, out_channels)
        changes = in_channels != out_channels
        self.conv_shortcut = conv(config.dims, in_channels, out_channels, 1) if changes else None

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        h = self._normalised(self.norm1, x)
        if self.resample is not None:
            resample = halve if self.resample == "down" else double
            h, x = resample(h), resample(x)
        h = self.conv1(h)
        row = self.time_emb_proj(temb)  # [B, C'] or [B, 2C']
        if self.scale_shift:
            scale, shift = row.chunk(2, dim=1)
            h = self._normalised(self.norm2, h, scale=scale, shift=shift)
        else:
            h = self._normalised(self.norm2, h, row=row)
        h = self.conv2(self.dropout(h))
        y: Tensor = (x if self.conv_shortcut is None else self.conv_shortcut(x)) + h
        return y if self.output_scale == 1 else y / self.output_scale

    def _normalised(self, norm: nn.GroupNorm, x: Tensor, **rows: Tensor) -> Tensor:
        silu = ACTIVATIONS[self.act_fn] is F.silu
        h = ops.group_norm_silu(
            x,
            norm.weight,
            norm.bias,
            norm.num_groups,
            norm.eps,
            activation="silu" if silu else None,
            **rows,
        )
        return h if silu else ACTIVATIONS[self.act_fn](h)


def attention(
    config: UNetConfig, channels: int, *, up: bool = False, middle: bool = False
) -> Attention:
    """An attention layer of the down path, the up path or the middle, as the config has it."""
    heads, head_dim = config.attention_heads(channels, up=up)
    groups: int | None = config.norm_num_groups
    if middle:
        # diffusers drops this normalisation under scale_shift unless its groups are named.
        default = groups if config.resnet_time_scale_shift == "default" else None
        groups = config.attn_norm_num_groups or default
    return Attention(
        channels,
        heads,
        head_dim,
        num_groups=groups,
        eps=config.norm_eps,
        output_scale=config.mid_block_scale_factor if middle else 1.0,
    )


class Level(nn.Module):
    """Residual blocks, each followed by attention where the level has any."""

    resnets: nn.ModuleList
    attentions: nn.ModuleList

    def _build(self, resnets: list[ResnetBlock], attentions: list[Attention]) -> None:
        # Levels without attention have no such list, so that state dict keys are diffusers' own.
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions)

    def _layers(self) -> Iterator[tuple[nn.Module, nn.Module | None]]:
        for i, resnet in enumerate(self.resnets):
            yield resnet, self.attentions[i] if len(self.attentions) else None


class DownLevel(Level):
    """`layers_per_block` residual blocks, then a downsampler unless it is the last level.

    Returns every output as a skip.
    """

    def __init__(
        self, config: UNetConfig, kind: str, in_channels: int, out_channels: int, *, last: bool
    ) -> None:
        super().__init__()
        inputs = [in_channels] + [out_channels] * (config.layers_per_block - 1)
        attends = kind.startswith("Attn")
        self._build(
            [ResnetBlock(config, channels, out_channels) for channels in inputs],
            [attention(config, out_channels) for _ in inputs if attends],
        )
        inside = kind.startswith("Resnet") or (attends and config.downsample_type == "resnet")
        self.downsamplers = nn.ModuleList()
        if not last and inside:
            self.downsamplers.append(
                ResnetBlock(config, out_channels, out_channels, resample="down")
            )
        elif not last:
            self.downsamplers.append(Downsample(config, out_channels))

    def forward(self, x: Tensor, temb: Tensor) -> tuple[Tensor, list[Tensor]]:
        skips = []
        for resnet, attend in self._layers():
            x = resnet(x, temb)
            x = x if attend is None else attend(x)
            skips.append(x)
        for down in self.downsamplers:
            x = down(x, temb) if isinstance(down, ResnetBlock) else down(x)
            skips.append(x)
        return x, skips


class MiddleLevel(Level):
    """Residual block, attention (unless `add_attention` is False), residual block."""

    def __init__(self, config: UNetConfig, channels: int) -> None:
        super().__init__()
        scale = config.mid_block_scale_factor
        self._build(
            [ResnetBlock(config, channels, channels, output_scale=scale) for _ in range(2)],
            [attention(config, channels, middle=True)] if config.add_attention else [],
        )

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        x = self.resnets[0](x, temb)
        for attend in self.attentions:
            x = attend(x)
        y: Tensor = self.resnets[1](x, temb)
        return y


class UpLevel(Level):
    """`layers_per_block` + 1 residual blocks, each on [h, skip], then an upsampler."""

    def __init__(
        self,
        config: UNetConfig,
        kind: str,
        in_channels: int,
        out_channels: int,
        skip_channels: int,
        *,
        last: bool,
    ) -> None:
        super().__init__()
        count = config.layers_per_block + 1
        hidden = [in_channels] + [out_channels] * (count - 1)
        skips = [out_channels] * (count - 1) + [skip_channels]
        attends = kind.startswith("Attn")
        self._build(
            [ResnetBlock(config, h + s, out_channels) for h, s in zip(hidden, skips, strict=True)],
            [attention(config, out_channels, up=True) for _ in hidden if attends],
        )
        inside = kind.startswith("Resnet") or (attends and config.upsample_type == "resnet")
        self.upsamplers = nn.ModuleList()
        if not last and inside:
            self.upsamplers.append(ResnetBlock(config, out_channels, out_channels, resample="up"))
        elif not last:
            self.upsamplers.append(Upsample(config, out_channels))

    def forward(self, x: Tensor, temb: Tensor, skips: list[Tensor]) -> Tensor:
        """Consumes its skips from the end of the list."""
        for resnet, attend in self._layers():
            x = resnet(torch.cat([x, skips.pop()], dim=1), temb)
            x = x if attend is None else attend(x)
        for up in self.upsamplers:
            x = up(x, temb) if isinstance(up, ResnetBlock) else up(x)
        return x
