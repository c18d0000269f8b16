"""Settings beside a checkpoint, in JSON and in flags, that no network could have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from hostile_cases import CASES, HUGE, Make, add
from port_references import numbered_state, pesser_state
from safetensors.torch import save_file

from fastddpm import GaussianDiffusion, NoiseSchedule, save_pretrained
from fastddpm.unet import UNet, UNetConfig


def checkpoint(folder: Path) -> Path:
    unet = UNet(
        UNetConfig(
            block_out_channels=(4,),
            down_block_types=("DownBlock2D",),
            up_block_types=("UpBlock2D",),
            layers_per_block=1,
            norm_num_groups=2,
            attention_head_dim=4,
        )
    )
    save_pretrained(folder, unet, GaussianDiffusion(NoiseSchedule.linear(10)))
    return folder


def _edited(name: str, changes: dict[str, Any] | str) -> Make:
    def make(folder: Path) -> Path:
        path = checkpoint(folder) / name
        if isinstance(changes, dict):
            text = json.dumps(json.loads(path.read_text()) | changes)
        else:
            text = changes
        path.write_text(text)
        return folder

    return make


_CONFIGS: list[dict[str, Any]] = [
    {"layers_per_block": 10**9},
    {"layers_per_block": HUGE},
    {"block_out_channels": [HUGE]},
    {"block_out_channels": [2**62]},
    {
        "block_out_channels": [4] * 5000,
        "down_block_types": ["DownBlock2D"] * 5000,
        "up_block_types": ["UpBlock2D"] * 5000,
    },
    {"in_channels": 2**62},
    {"time_embedding_dim": 2**63},
    {"num_class_embeds": 2**62},
    {"time_embedding_type": "learned", "num_train_timesteps": 2**62},
    {"norm_num_groups": 0},
    {"norm_eps": float("nan")},
    {"attention_head_dim": 10**400},
    {"sample_size": [1] * 1000},
    {"dims": 10**6},
    {"block_out_channels": 1e300},
    {"freq_shift": 10**18},
]
_SCHEDULERS: list[dict[str, Any]] = [
    {"num_train_timesteps": HUGE},
    {"num_train_timesteps": 1e18},
    {"num_train_timesteps": -1},
    {"num_train_timesteps": float("inf")},
    {"beta_end": float("nan")},
    {"beta_start": 1e308},
    {"trained_betas": [[[1]]]},
    {"trained_betas": "x" * 1000},
    {"beta_schedule": "__class__"},
    {"clip_sample_range": float("nan")},
]
for changes in _CONFIGS:
    add(f"config.json {str(changes)[:60]}", _edited("config.json", changes))
for changes in _SCHEDULERS:
    add(f"scheduler {str(changes)[:60]}", _edited("scheduler_config.json", changes))
for name in ("config.json", "scheduler_config.json"):
    add(f"{name} of brackets", _edited(name, "[" * 10**6))
    add(f"{name} of objects", _edited(name, '{"a":' * 10**6))
    add(f"{name} of digits", _edited(name, '{"in_channels": ' + "9" * 10**5 + "}"))
    add(f"{name} of null bytes", _edited(name, "\0" * 1000))


def _openai(kwargs: dict[str, Any]) -> Make:
    def make(folder: Path) -> Path:
        save_file({"input_blocks.0.0.weight": torch.zeros(2)}, folder / "model.safetensors")
        (folder / "kwargs.json").write_text(json.dumps(kwargs))
        return folder

    return make


_SMALL = {"model_channels": 32, "num_res_blocks": 1, "attention_resolutions": [2]}
for kwargs in (
    _SMALL | {"num_res_blocks": 10**9},
    _SMALL | {"model_channels": 32 * 2**60},
    _SMALL | {"channel_mult": [1e308]},
    _SMALL | {"channel_mult": [float("inf")]},
    _SMALL | {"channel_mult": [float("nan")]},
    _SMALL | {"channel_mult": []},
    _SMALL | {"diffusion_steps": HUGE, "rescale_timesteps": True},
    _SMALL | {"diffusion_steps": 10**9, "timestep_respacing": "1," * 10**5},
    _SMALL | {"timestep_respacing": "ddim" + "9" * 100},
    _SMALL | {"num_classes": 2**62},
    {"num_channels": 128, "attention_resolutions": "0"},
    {"num_channels": 128, "attention_resolutions": "1e-300"},
    {"num_channels": 128, "attention_resolutions": "nan"},
    {"num_channels": 128, "attention_resolutions": "inf"},
    {"num_channels": 128, "channel_mult": "1e400,nan"},
    {"num_channels": 128, "image_size": 0},
):
    add(f"OpenAI's kwargs {str(kwargs)[:90]} {len(CASES)}", _openai(kwargs))


def _ho(kwargs: dict[str, Any]) -> Make:
    def make(folder: Path) -> Path:
        torch.save(pesser_state(ch_mult=(1,)), folder / "model.ckpt")
        (folder / "kwargs.json").write_text(json.dumps(kwargs))
        return folder

    return make


for kwargs in (
    {"num_diffusion_timesteps": HUGE},
    {"num_diffusion_timesteps": 0},
    {"beta_end": float("nan")},
    {"resolution": "x"},
    {"resolution": 0},
    {"beta_schedule": ["linear"]},
    {"model_var_type": {}},
):
    add(f"Ho's kwargs {kwargs}", _ho(kwargs))


def _flags(text: str) -> Make:
    def make(folder: Path) -> Path:
        torch.save({"ema_model": numbered_state(T=20, ch_mult=(1,))}, folder / "ckpt.pt")
        (folder / "flagfile.txt").write_text(text)
        return folder

    return make


for text in ("--T=" + "9" * 10**4, "--T=-1", "--beta_1=nan", "--beta_T=1e300", "--img_size=0"):
    add(f"pytorch-ddpm's flags {text[:20]}", _flags(text))
