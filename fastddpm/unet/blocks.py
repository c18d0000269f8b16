"""The residual block of a U-Net.

Ho et al. 2020, appendix B; scale-shift and resampling inside: Dhariwal and Nichol 2021. With a the
activation and temb the time embedding:

    h = conv1(resample(a(norm1(x))))
    h = conv2(dropout(a(norm2(h + row))))                   "default":      row = W·a(temb)
    h = conv2(dropout(a((1 + scale)·norm2(h) + shift)))     "scale_shift":  scale, shift = W·a(temb)
    y = (shortcut(resample(x)) + h) / output_scale
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from fastddpm.unet.config import UNetConfig
from fastddpm.unet.convolution import conv, convolve, project, without_bias
from fastddpm.unet.resampling import double, halve
from fastddpm.unet.sum import Sum


class ResnetBlock(nn.Module):
    """[B, C, *spatial] and its columns of the time rows -> [B, C', *spatial].

    Under "default" conv1's bias is part of the row: both are added to the same sum, so the
    convolution runs without.

    Args:
        resample: "down" or "up" changes the spatial size inside the block.
        output_scale: the sum with the residual is divided by this.

    columns: where its row lies among those of all blocks; the network sets it.
    """

    columns: slice

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

    def time_row(self, temb: Tensor) -> Tensor:
        """a(temb) [B, time_channels] -> [B, C'], or scale and shift side by side [B, 2C']."""
        return F.linear(temb, self.time_emb_proj.weight, self.row_bias())

    def row_bias(self) -> Tensor:
        """What the row holds whatever the time: [C'] or [2C']."""
        own = self.time_emb_proj.bias
        if self.scale_shift or self.conv1.bias is None:
            return own
        return own + self.conv1.bias

    def forward(self, x: Sum, rows: Tensor) -> Sum:
        row = rows[:, self.columns]
        # Nested, so that no map outlives its reader: named ones cost 14 % of a forward pass in
        # page faults (the built-in network, batch 16, one core).
        h = convolve(self.conv2, self.dropout(self._second_norm(self._first_conv(x, row), row)))
        y = h.plus(self._shortcut(x.total()))
        return y if self.output_scale == 1 else Sum(y.total() / self.output_scale)

    def _first_conv(self, x: Sum, row: Tensor) -> Sum:
        h = self._resampled(x.normalised(self.norm1, self.act_fn))
        if self.scale_shift:
            return convolve(self.conv1, h)
        return Sum(without_bias(self.conv1, h), row=row)

    def _second_norm(self, h: Sum, row: Tensor) -> Tensor:
        scale, shift = row.chunk(2, dim=1) if self.scale_shift else (None, None)
        return h.normalised(self.norm2, self.act_fn, scale=scale, shift=shift, keep=False)

    def _shortcut(self, x: Tensor) -> Tensor:
        x = self._resampled(x)
        return x if self.conv_shortcut is None else project(self.conv_shortcut, x)

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample is None:
            return x
        return halve(x) if self.resample == "down" else double(x)
