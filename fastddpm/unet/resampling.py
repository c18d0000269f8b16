"""Halving and doubling the map of a level.

Down: a 3×3 convolution of stride 2, or the mean of 2×2. Up: nearest neighbour, then a 3×3
convolution or nothing. In 3-D only the last two dimensions change size (OpenAI).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from fastddpm.unet.config import UNetConfig
from fastddpm.unet.convolution import CONVOLUTIONS, Convolution, conv, convolve
from fastddpm.unet.sum import Sum


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
        self.one_sided = config.downsample_padding == 0
        self.conv: Convolution | None = None
        if config.downsample_type == "pool":
            return
        changed = min(config.dims, 2)
        kept = config.dims - changed
        self.conv = CONVOLUTIONS[config.dims](
            channels,
            channels,
            3,
            stride=(1,) * kept + (2,) * changed,
            padding=(1,) * kept + (config.downsample_padding,) * changed,
        )

    def forward(self, x: Sum) -> Sum:
        if self.conv is None:
            return Sum(halve(x.total()))
        return convolve(self.conv, x.resampled("pad") if self.one_sided else x.total())


class Upsample(nn.Module):
    """Doubles the spatial size: nearest neighbour, then a convolution unless "nearest"."""

    def __init__(self, config: UNetConfig, channels: int) -> None:
        super().__init__()
        learned = config.upsample_type != "nearest"
        self.conv = conv(config.dims, channels, channels) if learned else None

    def forward(self, x: Sum) -> Sum:
        doubled = x.resampled("double", keep=False)
        return Sum(doubled) if self.conv is None else convolve(self.conv, doubled)
