"""Our network and process as w86763777/pytorch-ddpm reads them, by its loaders and by `main.py`.

    ckpt.pt         {"net_model", "ema_model", "step"}: the network, twice
    flagfile.txt    flags of main.py that make this network and process

What only its training needs (optimizer, warm-up, the images that it shows) is not written.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from fastddpm.checkpoint.differences import process_differences
from fastddpm.checkpoint.files import encoded
from fastddpm.checkpoint.folders import refuse_file_name, replace_folder
from fastddpm.checkpoint.ports import PYTORCH_DDPM
from fastddpm.checkpoint.ports_export import differences, nearest, port_state
from fastddpm.checkpoint.pytorch_ddpm import (
    FIRST_LINEAR,
    FLAGFILE,
    PREDICTIONS,
    TABLE,
    VARIANCES,
    Flags,
    embedding_table,
    flagged_process,
    in_turns,
)
from fastddpm.diffusion import GaussianDiffusion
from fastddpm.unet import UNet, UNetConfig

WEIGHTS = "ckpt.pt"
# Its UNet has no argument for them.
_CHANNELS = 3
# Its betas are float32 numbers between two ends.
_ROUNDING = 1e-6


def save_pytorch_ddpm(
    folder: str | os.PathLike[str], unet: UNet, diffusion: GaussianDiffusion
) -> None:
    """Write the network as pytorch-ddpm's ckpt.pt, with its flags beside it.

    Betas come back as float32 numbers, which is what that code has.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
        ValueError: that code cannot express the network or the process, or `folder` is a file,
            named like one, or holds a checkpoint of another layout.
    """
    refuse_file_name(Path(folder))
    config, flags = unet.config, _flags(diffusion, unet.config)
    survey = replace(
        nearest(config), in_channels=_CHANNELS, out_channels=_CHANNELS, has_resampling=True
    )
    steps = len(diffusion.schedule)
    differing = differences(PYTORCH_DDPM, config, survey) + process_differences(
        diffusion, flagged_process(flags, steps, "pytorch-ddpm"), relative=_ROUNDING
    )
    if differing:
        raise ValueError(f"pytorch-ddpm has no flags for {', '.join(differing)}")
    state = port_state(PYTORCH_DDPM, unet, survey)
    state[TABLE] = embedding_table(steps, config.block_out_channels[0])
    state[FIRST_LINEAR] = in_turns(state[FIRST_LINEAR])
    contents = {"net_model": state, "ema_model": state, "step": 0}
    text = _flagfile(flags, config)
    replace_folder(Path(folder), {FLAGFILE: text, WEIGHTS: encoded(WEIGHTS, contents)})


def _flags(diffusion: GaussianDiffusion, config: UNetConfig) -> Flags:
    """The nearest flags; whether they say all is seen by reading them back."""
    predictions = {ours: name for name, ours in PREDICTIONS.items()}
    variances = {ours: name for name, ours in VARIANCES.items()}
    betas = diffusion.schedule.betas.float().numpy()
    return Flags(
        T=len(betas),
        # As few digits as say the float32 number.
        beta_1=float(str(np.float32(betas[0]))),
        beta_T=float(str(np.float32(betas[-1]))),
        mean_type=predictions.get(diffusion.prediction, "epsilon"),
        var_type=variances.get(diffusion.variance, "fixedlarge"),
        img_size=config.sample_size if isinstance(config.sample_size, int) else None,
        dropout=config.dropout,
    )


def _flagfile(flags: Flags, config: UNetConfig) -> str:
    channels = config.block_out_channels
    attending = [i for i, kind in enumerate(config.down_block_types) if kind.startswith("Attn")]
    lines = [
        ("ch", channels[0]),
        *(("ch_mult", c // channels[0]) for c in channels),
        # absl has no spelling for an empty list, and the default is level 1. No level is -1.
        *(("attn", level) for level in attending or [-1]),
        ("num_res_blocks", config.layers_per_block),
        *((name, value) for name, value in vars(flags).items() if value is not None),
    ]
    return "".join(f"--{name}={value}\n" for name, value in lines)
