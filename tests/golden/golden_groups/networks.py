"""The network of a golden case: a checkpoint folder of either family, or drawn by recipe."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastddpm.checkpoint import from_pretrained
from fastddpm.checkpoint.diffusers import read_config
from fastddpm.checkpoint.fit import DIFFUSERS_SWITCHES, check_fit, fill, skeleton
from fastddpm.unet import UNet, UNetConfig


def load(model: dict[str, Any], config: dict[str, Any] | None = None) -> UNet:
    """`model` is inputs["model"]; `config` is case["config"], which a {"recipe"} needs."""
    if "path" in model:
        return from_pretrained(Path(model["path"]))[0]
    if config is None or "_params" not in config:
        raise ValueError(f"a network by recipe needs the case's config, got {config!r}")
    state = {entry["name"]: _draw(entry) for entry in config["_params"]}
    # Settings of the chain may stand beside those of the network.
    network = {k: v for k, v in config.items() if k in UNetConfig.__dataclass_fields__}
    unet_config = read_config(network, "case config")
    unet = skeleton(unet_config)
    check_fit(state, unet.state_dict(), "the recipe", DIFFUSERS_SWITCHES)
    return fill(unet, state)


def forward(case: dict[str, Any], inputs: dict[str, Any]) -> np.ndarray:
    """The network's output for a case with x, timesteps and perhaps labels."""
    unet = load(inputs["model"], case["config"])
    x, timesteps = torch.tensor(inputs["x"]), torch.tensor(inputs["timesteps"])
    with torch.inference_mode():
        return unet(x, timesteps, labels_of(inputs)).numpy()


def labels_of(inputs: dict[str, Any]) -> torch.Tensor | None:
    """The class labels of a case, under either family's name for them; None if it has none."""
    labels = inputs.get("class_labels", inputs.get("y"))
    return None if labels is None else torch.tensor(labels)


def _draw(entry: dict[str, Any]) -> torch.Tensor:
    """One parameter by the recipe of public/README.md, checked against its sha256."""
    name, shape = entry["name"], tuple(entry["shape"])
    z = np.random.RandomState(entry["rs_seed"]).standard_normal(shape)
    is_table = "label_emb" in name or "class_embedding" in name or name == "time_proj.weight"
    if is_table and len(shape) > 1:
        value = 0.5 * z
    elif name == "time_proj.weight":
        value = 1.0 * z
    elif len(shape) == 1:
        value = 1 + 0.2 * z if name.endswith("weight") else 0.1 * z
    else:
        value = z / math.sqrt(math.prod(shape[1:]))
    drawn = value.astype(np.float32)
    found = hashlib.sha256(drawn.tobytes()).hexdigest()
    if found != entry["sha256_f32"]:
        raise ValueError(f"{name}: drawn parameters have sha256 {found}, not {entry['sha256_f32']}")
    return torch.from_numpy(drawn)
