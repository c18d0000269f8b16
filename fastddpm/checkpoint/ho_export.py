"""Our network and process as pesser's port and ermongroup's code read them.

    model.ckpt     the state dict, under pesser's names
    kwargs.json    the process, under the names of Ho's settings

Names and settings are proposed, read back as any, and compared: what comes back different is what
that code cannot express.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import torch

from fastddpm.checkpoint.files import refuse_file_name, replace_folder
from fastddpm.checkpoint.ho import KWARGS
from fastddpm.checkpoint.ho_settings import (
    PREDICTIONS,
    VARIANCES,
    HoSettings,
    ho_process,
)
from fastddpm.checkpoint.openai_export import effective
from fastddpm.checkpoint.ports import PESSER, Survey, config_of, theirs
from fastddpm.diffusion import GaussianDiffusion
from fastddpm.unet import UNet, UNetConfig

WEIGHTS = "model.ckpt"
_CONVOLVED = ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight")


def save_ho(folder: str | os.PathLike[str], unet: UNet, diffusion: GaussianDiffusion) -> None:
    """Write the network as pesser's state dict, with Ho's settings beside it.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
        ValueError: that code cannot express the network or the process, or `folder` is a file or
            named like one.
    """
    refuse_file_name(Path(folder))
    survey = _survey(unet.config)
    settings = _settings(diffusion, unet.config)
    differing = _differences(unet.config, survey) + _process_differences(
        diffusion, settings, unet.config
    )
    if differing:
        raise ValueError(f"Ho's code and its ports have no settings for {', '.join(differing)}")
    names = theirs(PESSER, survey, unet.state_dict())
    state = {
        names[key]: (value[:, :, None, None] if key.endswith(_CONVOLVED) else value)
        .detach()
        .cpu()
        .contiguous()
        for key, value in unet.state_dict().items()
    }
    text = json.dumps({k: v for k, v in asdict(settings).items() if v is not None}, indent=2)
    replace_folder(Path(folder), {KWARGS: text + "\n"}, WEIGHTS, state)


def _survey(config: UNetConfig) -> Survey:
    return Survey(
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        channels=config.block_out_channels,
        layers=config.layers_per_block,
        attends=tuple(kind.startswith("Attn") for kind in config.down_block_types),
        has_resampling=config.downsample_type != "pool",
    )


def _differences(config: UNetConfig, survey: Survey) -> list[str]:
    """The fields of a config that a network of Ho's with the same levels has otherwise."""
    own = effective(config)
    try:
        again = effective(config_of(PESSER, survey, "Ho's code", None, config.dropout))
    except ValueError as error:
        return [str(error)]
    return [f"{name}={getattr(config, name)!r}" for name in own if own[name] != again[name]]


def _settings(diffusion: GaussianDiffusion, config: UNetConfig) -> HoSettings:
    """The nearest settings; whether they say all is seen by reading them back."""
    predictions = {ours: name for name, ours in PREDICTIONS.items()}
    variances = {ours: name for name, ours in VARIANCES.items()}
    betas = diffusion.schedule.betas
    settings = HoSettings(
        beta_start=float(betas[0]),
        beta_end=float(betas[-1]),
        num_diffusion_timesteps=len(betas),
        model_mean_type=predictions.get(diffusion.prediction, "eps"),
        model_var_type=variances.get(diffusion.variance),
        dropout=config.dropout,
        resolution=config.sample_size if isinstance(config.sample_size, int) else None,
    )
    # Squaring a root moves the last bit of "quad"'s ends.
    start, end = (float(f"{float(beta):.12g}") for beta in (betas[0], betas[-1]))
    quad = replace(settings, beta_schedule="quad", beta_start=start, beta_end=end)
    return settings if _process_differences(diffusion, quad, config) else quad


def _process_differences(
    diffusion: GaussianDiffusion, settings: HoSettings, config: UNetConfig
) -> list[str]:
    again = ho_process(settings, config, "Ho's code")
    same = torch.equal(again.schedule.betas, diffusion.schedule.betas) and torch.equal(
        again.schedule.timesteps, diffusion.schedule.timesteps
    )
    names = ("prediction", "variance", "clip", "last_step_noise", "timestep_scale")
    return ([] if same else [f"{diffusion.schedule}"]) + [
        f"{name}={getattr(diffusion, name)!r}"
        for name in names
        if getattr(again, name) != getattr(diffusion, name)
    ]
