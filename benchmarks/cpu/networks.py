"""The networks that are compared, each a folder in diffusers' layout that every contender reads.

cifar10   google/ddpm-cifar10-32's architecture, 35,746,307 parameters, seeded random weights
mnist     the built-in model
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import fastddpm
from fastddpm import GaussianDiffusion, NoiseSchedule, UNet, UNetConfig

NAMES = ("cifar10", "mnist")
SEED = 0


def write(name: str, folder: Path) -> None:
    """Write the network's weights and settings, for us and for diffusers.

    Raises ValueError for another name than those of NAMES.
    """
    if name == "cifar10":
        unet = randomised(UNet(UNetConfig.ho(sample_size=32)))
        diffusion = GaussianDiffusion(NoiseSchedule.linear(1000), variance="fixed_large")
    elif name == "mnist":
        unet, diffusion = fastddpm.from_pretrained(name)
    else:
        raise ValueError(f"networks are {', '.join(NAMES)}; got {name!r}")
    fastddpm.save_pretrained(folder, unet, diffusion)


def randomised(unet: UNet, seed: int = SEED) -> UNet:
    """The network with weights that keep the size of what passes through: normal, of variance
    1 / fan_in. A fresh one is the zero function, which any wrong network would agree with."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in unet.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
            else:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return unet


def inputs(unet: UNet, batch: int) -> tuple[Tensor, Tensor]:
    """x [B, C, H, W] and t [B] at which the contenders' outputs are compared."""
    config = unet.config
    assert config.size is not None
    generator = torch.Generator().manual_seed(SEED + 1)
    x = torch.randn(batch, config.in_channels, *config.size, generator=generator)
    return x, torch.full((batch,), 500)


def write_expected(folder: Path, batch: int) -> None:
    """Write the inputs of a batch and the network's exact output beside its weights."""
    unet, _ = fastddpm.from_pretrained(folder)
    x, t = inputs(unet, batch)
    save_file({"x": x, "t": t, "y": exact(unet, x, t)}, _expected_file(folder, batch))


def expected(folder: Path, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """x [B, C, H, W], t [B] and y [B, C', H, W] (float64) as ``write_expected`` has left them."""
    found = load_file(_expected_file(folder, batch))
    return found["x"], found["t"], found["y"]


def _expected_file(folder: Path, batch: int) -> Path:
    return folder / f"expected_{batch}.safetensors"


def exact(unet: UNet, x: Tensor, t: Tensor) -> Tensor:
    """The network's output in float64."""
    with torch.no_grad():
        y: Tensor = unet.double()(x.double(), t)
    unet.float()
    return y
