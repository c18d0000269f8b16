"""Our network and process as Ho's TensorFlow code, pesser's port and ermongroup's code read them.

    model.ckpt                          pesser's names, in a torch file, or
    checkpoint, model.ckpt-0.index,     Ho's variables, each with its average, in TensorFlow's
    model.ckpt-0.data-00000-of-00001    format, and global_step
    kwargs.json                         the process, under the names of Ho's settings

kwargs.json has what is computed. How Ho's scripts are set up (dataset, model_name, loss_type, ...)
is theirs to say: his code reads it from the same file.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from fastddpm.checkpoint.differences import process_differences
from fastddpm.checkpoint.files import encoded
from fastddpm.checkpoint.folders import refuse_file_name, replace_folder
from fastddpm.checkpoint.ho import AVERAGE, KWARGS
from fastddpm.checkpoint.ho_settings import PREDICTIONS, VARIANCES, HoSettings, ho_process
from fastddpm.checkpoint.ports import PESSER, as_matrix
from fastddpm.checkpoint.ports_export import differences, nearest, port_state
from fastddpm.checkpoint.tensor_bundle import bundle_files
from fastddpm.diffusion import GaussianDiffusion
from fastddpm.unet import UNet, UNetConfig

WEIGHTS = "model.ckpt"
# tf.train.Saver puts the step of training behind the name. Nothing here says it.
BUNDLE, STEP = f"{WEIGHTS}-0", 0


def save_ho(folder: str | os.PathLike[str], unet: UNet, diffusion: GaussianDiffusion) -> None:
    """Write the network as pesser's state dict, with Ho's settings beside it.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
        ValueError: that code cannot express the network or the process, or `folder` is a file,
            named like one, or holds a checkpoint of another layout.
    """
    refuse_file_name(Path(folder))
    text, state = _expressed(unet, diffusion)
    replace_folder(Path(folder), {KWARGS: text, WEIGHTS: encoded(WEIGHTS, state)})


def save_ho_bundle(
    folder: str | os.PathLike[str], unet: UNet, diffusion: GaussianDiffusion
) -> None:
    """Write the network as a TensorFlow checkpoint of Ho's code, with his settings beside it.

    The weights stand for their averages, too, which his evaluation loads with them.

    Raises: as `save_ho`.
    """
    refuse_file_name(Path(folder))
    text, state = _expressed(unet, diffusion)
    variables = {_variable(key): _tensorflow_layout(value) for key, value in state.items()}
    averages = {name + AVERAGE: value for name, value in variables.items()}
    step = {"global_step": torch.tensor(STEP)}
    files = bundle_files(BUNDLE, variables | averages | step)
    replace_folder(Path(folder), {KWARGS: text} | files)


def _expressed(unet: UNet, diffusion: GaussianDiffusion) -> tuple[str, dict[str, Tensor]]:
    """(kwargs.json, pesser's state dict). Raises ValueError for what they cannot express."""
    survey = nearest(unet.config)
    settings = _settings(diffusion, unet.config)
    differing = differences(PESSER, unet.config, survey)
    differing += _unlike(diffusion, settings, unet.config)
    if differing:
        raise ValueError(f"Ho's code and its ports have no settings for {', '.join(differing)}")
    text = json.dumps({k: v for k, v in asdict(settings).items() if v is not None}, indent=2)
    return text + "\n", port_state(PESSER, unet, survey)


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
    return settings if _unlike(diffusion, quad, config) else quad


def _unlike(diffusion: GaussianDiffusion, settings: HoSettings, config: UNetConfig) -> list[str]:
    return process_differences(diffusion, ho_process(settings, config, "Ho's code"))


def _variable(key: str) -> str:
    """down.0.block.1.conv1.weight -> model/down_0/block_1/conv1/W, Ho's name for pesser's."""
    module, _, leaf = key.rpartition(".")
    name = re.sub(r"\b(down|up|block|attn)\.(\d+)", r"\1_\2", module)
    name = re.sub(r"\bdense\.(\d)", r"dense\1", name).replace(".", "/")
    norm = {"weight": "gamma", "bias": "beta"}
    layer = {"weight": "W", "bias": "b"}
    leaves = norm if name.rpartition("/")[2].startswith("norm") else layer
    return f"model/{name}/{leaves[leaf]}"


def _tensorflow_layout(value: Tensor) -> Tensor:
    """[height, width, in, out], or [in, out] for what torch has as a 1 × 1 convolution, too."""
    value = as_matrix(value)
    if value.ndim == 4:
        return value.permute(2, 3, 1, 0)
    return value.T if value.ndim == 2 else value
