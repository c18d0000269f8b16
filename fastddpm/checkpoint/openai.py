"""OpenAI's layout of a checkpoint: a state dict in one file, and its keyword arguments in JSON.

    model.safetensors or NAME.pt     names of improved- and guided-diffusion's UNetModel
    kwargs.json beside it            arguments, as `openai_kwargs` describes them

OpenAI publishes the arguments in a README, so they may also be handed in.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fastddpm.checkpoint.files import encoded, read_json
from fastddpm.checkpoint.fit import OPENAI_SWITCHES, check_fit, fill, skeleton
from fastddpm.checkpoint.folders import refuse_file_name, replace_folder
from fastddpm.checkpoint.openai_export import openai_kwargs
from fastddpm.checkpoint.openai_kwargs import diffusion_of, read_kwargs, unet_config
from fastddpm.checkpoint.openai_names import from_openai, to_openai
from fastddpm.diffusion import GaussianDiffusion
from fastddpm.unet import UNet

KWARGS = "kwargs.json"
WEIGHTS = "model.safetensors"


def is_openai(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has OpenAI's names."""
    return any(key.startswith(("input_blocks.", "time_embed.", "output_blocks.")) for key in state)


def read_openai(
    state: Mapping[str, Tensor], path: Path, kwargs: Mapping[str, Any] | None
) -> tuple[UNet, GaussianDiffusion]:
    """The network and process of a state dict read from `path`, with its arguments.

    Raises:
        ValueError: there are no arguments, or they do not fit the state dict.
    """
    source = "kwargs"
    if kwargs is None:
        if not (path.parent / KWARGS).is_file():
            raise ValueError(
                f"{path} is an OpenAI state dict, whose settings cannot be told from its tensors: "
                f"give kwargs={{...}}, the arguments it was trained with, or put {KWARGS} beside it"
            )
        source = str(path.parent / KWARGS)
        kwargs = read_json(path.parent / KWARGS)
    model, process = read_kwargs(kwargs, source)
    config, diffusion = unet_config(model), diffusion_of(process, source)
    unet = skeleton(config, source)
    check_fit(state, to_openai(unet.state_dict(), config), str(path), OPENAI_SWITCHES)
    order = model.use_new_attention_order
    return fill(unet, from_openai(state, config, use_new_attention_order=order)), diffusion


def save_openai(folder: str | os.PathLike[str], unet: UNet, diffusion: GaussianDiffusion) -> None:
    """Write the network as OpenAI's state dict and arguments, in the legacy qkv order.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
        ValueError: OpenAI's code cannot express the network or the process, or `folder` is a file,
            named like one, or holds a checkpoint of another layout.
    """
    refuse_file_name(Path(folder))
    kwargs = openai_kwargs(unet.config, diffusion)
    state = {k: v.contiguous() for k, v in to_openai(unet.state_dict(), unet.config).items()}
    text = json.dumps(kwargs, indent=2) + "\n"
    replace_folder(Path(folder), {WEIGHTS: encoded(WEIGHTS, state), KWARGS: text})
