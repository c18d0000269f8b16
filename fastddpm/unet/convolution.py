"""Convolutions in 1, 2 or 3 dimensions, and where their biases are added.

On a CPU a convolution adds its bias for free. On a GPU cuDNN launches a second kernel for it, while
the normalisation that comes next can add it in passing: there the bias stays in the `Sum`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from fastddpm import ops
from fastddpm.ops.backends import kernels_of
from fastddpm.ops.conv3x3 import suits
from fastddpm.unet.sum import Sum

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
CONVOLUTIONS: dict[int, Callable[..., Convolution]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
# By the dimensions of what they convolve, [B, C, *spatial].
FUNCTIONS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


def conv(dims: int, in_channels: int, out_channels: int, size: int = 3) -> Convolution:
    """A stride-1 convolution that keeps the spatial size, in 1, 2 or 3 dimensions."""
    return CONVOLUTIONS[dims](in_channels, out_channels, size, padding=size // 2)


def convolve(layer: Convolution, x: Tensor) -> Sum:
    """layer(x), [B, C', *spatial], its bias added by the next layer where that is cheaper."""
    if not fuses(x):
        return Sum(layer(x))
    return Sum(without_bias(layer, x), row=layer.bias)


def without_bias(layer: Convolution, x: Tensor) -> Tensor:
    """layer(x) without its bias, which is added elsewhere: [B, C', *spatial]."""
    if fuses(x) and not torch.is_grad_enabled() and _is_3x3(layer) and suits(x, layer.weight):
        return ops.conv3x3(x, layer.weight)
    y: Tensor = FUNCTIONS[x.dim()](x, layer.weight, None, layer.stride, layer.padding)
    return y


def _is_3x3(layer: Convolution) -> bool:
    """Whether it is a plain 3×3 convolution of stride 1 that keeps the size."""
    sizes = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups)
    return sizes == ((3, 3), (1, 1), (1, 1), (1, 1), 1) and layer.padding_mode == "zeros"


def project(layer: Convolution, x: Tensor) -> Tensor:
    """A 1×1 convolution, bias and all; as one matrix product where positions are rows already."""
    if not fuses(x):
        y: Tensor = layer(x)
        return y
    batch, _, height, width = x.shape
    rows = rearrange(x, "b c h w -> (b h w) c")
    out = F.linear(rows, layer.weight.flatten(1), layer.bias)
    return rearrange(out, "(b h w) c -> b c h w", b=batch, h=height, w=width)


def fuses(x: Tensor) -> bool:
    """Whether the ops on x, [B, C, *spatial], are GPU kernels that add a row in passing."""
    return (
        x.dim() == 4
        and kernels_of(x.device) == "triton"
        and x.is_contiguous(memory_format=torch.channels_last)
    )
