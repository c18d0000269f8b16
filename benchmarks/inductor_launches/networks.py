"""What is lowered: diffusers' network and ours, both Ho's CIFAR-10 net with 35,746,307 parameters.

Weights are fake CUDA tensors: only shapes, dtypes and layouts matter here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fastddpm import GaussianDiffusion, NoiseSchedule, UNet, UNetConfig, ops
from fastddpm.sampler import unet_network
from fastddpm.sampler.reverse_step import ReverseStep, StepTables
from fastddpm.sampler.unet_network import PackedNetwork
from fastddpm.unet import PackedUNet

DEVICE = torch.device("cuda", 0)
DTYPE = torch.bfloat16
# google/ddpm-cifar10-32's config.json, but for what UNet2DModel has as its own default.
CIFAR10 = {
    "sample_size": 32,
    "layers_per_block": 2,
    "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": None,
    "norm_eps": 1e-6,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "downsample_padding": 0,
}

# A step and its inputs.
Program = tuple[Callable[..., Any], tuple[Tensor, ...]]


def diffusers_network(
    mode: FakeTensorMode, batch: int, config: dict[str, Any], *, channels_last: bool
) -> Program:
    """UNet2DModel(x, t): the network alone, without the scheduler's step."""
    from diffusers import UNet2DModel

    form = torch.channels_last if channels_last else torch.contiguous_format
    with torch.device("meta"):
        model = UNet2DModel(**config).eval()
    _to_fake_cuda(mode, model, DTYPE, form)
    shape = (batch, model.config.in_channels, *[model.config.sample_size] * 2)
    with mode:
        x = torch.empty(shape, dtype=DTYPE, device=DEVICE).to(memory_format=form)
        t = torch.empty(batch, dtype=torch.int64, device=DEVICE)
    return lambda x, t: model(x, t).sample, (x, t)


def our_step(mode: FakeTensorMode, batch: int, config: UNetConfig) -> Program:
    """All that a captured step runs: the network, the reverse step with its noise, the counter."""
    diffusion = GaussianDiffusion(NoiseSchedule.linear(1000), variance="fixed_large")
    with torch.device("meta"):
        unet = UNet(config)
    shape = (batch, config.in_channels, *(config.size or ()))
    real = StepTables.of(diffusion, torch.device("cpu"))
    tables = StepTables(**{name: _fake_cuda(mode, tensor) for name, tensor in vars(real).items()})
    with mode:
        indices = torch.empty(batch, dtype=torch.int64, device=DEVICE)
        seed = torch.empty(1, dtype=torch.int64, device=DEVICE)
        draw = ops.Draw(seed, indices, tables.timesteps)
        state = torch.empty(shape, dtype=torch.float32, device=DEVICE)
        index = torch.empty(1, dtype=torch.int64, device=DEVICE)
    packed = _packed_network(mode, unet, tables.network_t)
    with mode:
        step = ReverseStep(packed, diffusion, tables, shape, draw)

    def captured(x: Tensor, i: Tensor) -> Tensor:
        x = step(x, i)
        i.sub_(1)
        return x

    return captured, (state, index)


def _packed_network(mode: FakeTensorMode, unet: UNet, timesteps: Tensor) -> PackedNetwork:
    """The sampler's own network for an engine that captures, with fake weights."""
    with mock.patch.object(PackedUNet, "refresh"):
        packed = PackedUNet(unet, "meta", DTYPE, channels_last=True)
    _to_fake_cuda(mode, packed, None, torch.channels_last)
    # A fingerprint reads addresses, which fake tensors do not have.
    with (
        mode,
        mock.patch.multiple(unet_network, PackedUNet=lambda *_: packed, Fingerprint=mock.Mock()),
    ):
        return PackedNetwork(unet, DEVICE, DTYPE, timesteps)


def _to_fake_cuda(
    mode: FakeTensorMode, model: nn.Module, dtype: torch.dtype | None, form: torch.memory_format
) -> None:
    """Put fake tensors on CUDA in the place of a meta model's; dtype None: each its own."""
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            held: dict[str, Any] = tensors
            for name, tensor in held.items():
                if tensor is not None:
                    held[name] = _fake_cuda(mode, tensor, dtype, form)


def _fake_cuda(
    mode: FakeTensorMode,
    tensor: Tensor,
    dtype: torch.dtype | None = None,
    form: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    kind = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    with mode:
        fake = torch.empty(tensor.shape, dtype=kind, device=DEVICE)
        fake = fake.to(memory_format=form) if fake.dim() == 4 else fake
        return nn.Parameter(fake, False) if isinstance(tensor, nn.Parameter) else fake
