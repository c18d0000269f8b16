"""What a layout cannot express: settings that come back otherwise when they are read again.

A writer proposes the layout's settings nearest to a network and its process, reads them back as the
loader would, and refuses with the names of all that differs.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import torch

from fastddpm.diffusion import GaussianDiffusion
from fastddpm.unet import UNetConfig

_SETTINGS = ("prediction", "variance", "clip", "last_step_noise", "timestep_scale")


def network_differences(config: UNetConfig, again: UNetConfig) -> list[str]:
    """name=value for every field of `config` that makes another network than `again`'s."""
    own, other = effective(config), effective(again)
    return [f"{name}={getattr(config, name)!r}" for name in own if own[name] != other[name]]


def process_differences(
    diffusion: GaussianDiffusion, again: GaussianDiffusion, *, relative: float = 0.0
) -> list[str]:
    """The schedule, where its betas differ by more than `relative`, and name=value of the rest."""
    schedule, other = diffusion.schedule, again.schedule
    same = torch.equal(schedule.timesteps, other.timesteps) and torch.allclose(
        schedule.betas, other.betas, rtol=relative, atol=0
    )
    return ([] if same else [f"{schedule}"]) + [
        f"{name}={getattr(diffusion, name)!r}"
        for name in _SETTINGS
        if getattr(again, name) != getattr(diffusion, name)
    ]


def effective(config: UNetConfig) -> dict[str, Any]:
    """The config's fields with different spellings of one network made equal."""
    groups = config.norm_num_groups if config.resnet_time_scale_shift == "default" else None
    spelt = replace(
        config,
        sample_size=None,
        num_train_timesteps=None,
        act_fn="silu" if config.act_fn == "swish" else config.act_fn,
        time_proj_dim=config.time_proj_dim or config.block_out_channels[0],
        time_embedding_dim=config.time_channels,
        attn_norm_num_groups=config.attn_norm_num_groups or groups,
        num_attention_heads=None,
        num_attention_heads_upsample=None,
        attention_head_dim=None,
    )
    width = [
        [config.attention_heads(c, up=up) for c in config.block_out_channels]
        for up in (False, True)
    ]
    return asdict(spelt) | {"attention_head_dim": width}
