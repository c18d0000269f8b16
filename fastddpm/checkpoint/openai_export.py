"""Our network and process as OpenAI's keyword arguments, where OpenAI's code can express them.

The arguments are proposed, read back as `openai_kwargs` reads any, and compared: what comes back
different is what OpenAI's code has no argument for.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import torch

from fastddpm.checkpoint.differences import network_differences, process_differences
from fastddpm.checkpoint.openai_kwargs import GROUPS, Process, UNetModel, diffusion_of, unet_config
from fastddpm.diffusion import GaussianDiffusion
from fastddpm.unet import UNetConfig


def openai_kwargs(config: UNetConfig, diffusion: GaussianDiffusion) -> dict[str, Any]:
    """Arguments of UNetModel and of the process that make the same network and process.

    Raises:
        ValueError: OpenAI's code cannot express them; lists the settings that differ.
    """
    model, process = _model(config), _process(diffusion)
    try:
        again = unet_config(model)
    except ValueError as error:
        raise ValueError(
            f"OpenAI's code, which always normalises in {GROUPS} groups, cannot express this "
            f"network: {error}"
        ) from error
    differing = network_differences(config, again)
    differing += process_differences(diffusion, diffusion_of(process, ""))
    if config.out_channels != config.in_channels * (2 if process.learn_sigma else 1):
        differing.append(f"out_channels={config.out_channels}")
    if differing:
        raise ValueError(f"OpenAI's code has no arguments for {', '.join(differing)}")
    return asdict(model) | asdict(process)


def _model(config: UNetConfig) -> UNetModel:
    channels = config.block_out_channels
    width = config.time_proj_dim or channels[0]
    attends = [kind.startswith("Attn") for kind in config.down_block_types]
    kinds = (*config.down_block_types, *config.up_block_types)
    inside = config.downsample_type == "resnet" or any(k.startswith("Resnet") for k in kinds)
    fixed_width = config.num_attention_heads is None and config.attention_head_dim is not None
    return UNetModel(
        model_channels=width,
        num_res_blocks=config.layers_per_block,
        attention_resolutions=tuple(2**i for i, attend in enumerate(attends) if attend),
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        image_size=config.sample_size if isinstance(config.sample_size, int) else None,
        dropout=config.dropout,
        channel_mult=tuple(c // width if c % width == 0 else c / width for c in channels),
        conv_resample=inside or config.downsample_type != "pool",
        dims=config.dims,
        num_classes=config.num_class_embeds,
        num_heads=config.num_attention_heads or 1,
        num_head_channels=config.attention_head_dim or -1 if fixed_width else -1,
        num_heads_upsample=config.num_attention_heads_upsample or -1,
        use_scale_shift_norm=config.resnet_time_scale_shift == "scale_shift",
        resblock_updown=inside,
    )


def _process(diffusion: GaussianDiffusion) -> Process:
    steps = len(diffusion.schedule)
    # OpenAI's linear schedule ends at beta = 20/T, which is no beta for fewer steps than 20.
    known = ("linear", "cosine") if steps >= 20 else ("cosine",)
    candidates = [
        Process(diffusion_steps=steps, noise_schedule=name, rescale_timesteps=False)
        for name in known
    ]
    betas = diffusion.schedule.betas
    named = [p for p in candidates if torch.equal(diffusion_of(p, "").schedule.betas, betas)]
    return replace(
        (named or candidates)[0],
        learn_sigma=diffusion.variance == "learned_range",
        sigma_small=diffusion.variance == "fixed_small",
        predict_xstart=diffusion.prediction == "sample",
        rescale_timesteps=diffusion.timestep_scale is not None,
    )
