"""The levels of a U-Net: residual blocks with or without attention, then a change of size.

A level receives and returns feature maps as sums not yet taken (`Sum`), and `rows` [B, R], the time
rows of all residual blocks of the network side by side.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from fastddpm.unet.attention import Attention
from fastddpm.unet.blocks import ResnetBlock
from fastddpm.unet.config import UNetConfig
from fastddpm.unet.resampling import Downsample, Upsample
from fastddpm.unet.sum import Sum


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

    def forward(self, x: Sum, rows: Tensor) -> tuple[Sum, list[Sum]]:
        skips = []
        for resnet, attend in self._layers():
            x = resnet(x, rows)
            x = x if attend is None else attend(x)
            skips.append(x)
        for down in self.downsamplers:
            x = down(x, rows) if isinstance(down, ResnetBlock) else down(x)
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

    def forward(self, x: Sum, rows: Tensor) -> Sum:
        x = self.resnets[0](x, rows)
        for attend in self.attentions:
            x = attend(x)
        y: Sum = self.resnets[1](x, rows)
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

    def forward(self, x: Sum, rows: Tensor, skips: list[Sum]) -> Sum:
        """Consumes its skips from the end of the list."""
        for resnet, attend in self._layers():
            x = resnet(x.joined(skips.pop().total()), rows)
            x = x if attend is None else attend(x)
        for up in self.upsamplers:
            x = up(x, rows) if isinstance(up, ResnetBlock) else up(x)
        return x
