"""The command line run in this process, on a small model, and what its commands wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from typer.testing import CliRunner

from fastddpm.checkpoint import from_pretrained, save_pretrained
from fastddpm.cli import app
from fastddpm.diffusion import GaussianDiffusion
from fastddpm.sampler import Sampler, to_uint8
from fastddpm.schedule import NoiseSchedule
from fastddpm.unet import UNet, UNetConfig

STEPS = 12
CONFIG = UNetConfig(
    sample_size=8,
    in_channels=1,
    out_channels=1,
    block_out_channels=(8, 8),
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    layers_per_block=1,
    norm_num_groups=4,
    attention_head_dim=None,
)


def small_unet(**fields: Any) -> UNet:
    torch.manual_seed(1)
    unet = UNet(UNetConfig.from_dict(CONFIG.to_dict() | fields))
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return unet


def save(folder: Path, unet: UNet, schedule: NoiseSchedule | None = None) -> str:
    schedule = schedule or NoiseSchedule.linear(STEPS, 1e-3, 0.3)
    save_pretrained(folder, unet, GaussianDiffusion(schedule))
    return str(folder)


def sampler_of(model: str) -> Sampler:
    """The model's sampler, in the memory layout that the commands use, so that bytes agree."""
    unet, diffusion = from_pretrained(model)
    return Sampler(unet.to(memory_format=torch.channels_last), diffusion)


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def succeeds(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return str(result.output)


def fails(*arguments: object, code: int = 1) -> str:
    """The command fails with one line on stderr."""
    result = run(*arguments)
    assert result.exit_code == code, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("fastddpm: ")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.output
    return str(lines[0])


def samples_of(folder: Path) -> Any:
    with np.load(folder / "samples.npz") as arrays:
        return arrays["samples"]


def expected(model: str, count: int, seed: int = 0) -> Any:
    return to_uint8(sampler_of(model).sample(count, seed, batch_size=4)).numpy()
