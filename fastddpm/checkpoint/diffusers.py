"""The diffusers layout of a network: config.json and diffusion_pytorch_model.safetensors.

Read: what UNet2DModel.save_pretrained wrote in any version (`diffusers_weights`), with the names of
the attention projections before 0.14 (query, key, value, proj_attn) and their 1x1-convolution
shapes.

Written: what UNet2DModel.from_pretrained reads and computes alike. Settings that it does not have
stand under the key "fastddpm". Where it would compute something else without them, the block types
are given a name that diffusers refuses, so that a network is read rightly or not at all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastddpm.checkpoint.conform import conform
from fastddpm.checkpoint.diffusers_weights import STEM, read_weights
from fastddpm.checkpoint.files import read_json
from fastddpm.checkpoint.fit import DIFFUSERS_SWITCHES, check_fit, fill, skeleton
from fastddpm.checkpoint.schedulers import OURS, REFUSED
from fastddpm.unet import UNet, UNetConfig

CONFIG = "config.json"
WEIGHTS = f"{STEM}.safetensors"
CLASSES = ("UNet2DModel", "fastddpm.UNet")
# UNetConfig's own fields, which UNet2DModel does not have, with the values at which it is one.
_OWN_FIELDS = {
    "dims": 2,
    "time_proj_dim": None,
    "num_attention_heads": None,
    "num_attention_heads_upsample": None,
}
_LEGACY = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_PROJECTION = re.compile(
    r"(.*attentions\.\d+)\.(query|key|value|proj_attn|to_q|to_k|to_v|to_out\.0)\.(\w+)"
)


def read_unet(folder: Path, variant: str | None = None, *, mapped: bool = False) -> UNet:
    """The network of a folder with config.json and its weights (`diffusers_weights`).

    mapped: float32 weights of a safetensors file stay in its mapping.

    Raises:
        ValueError: a file is missing, damaged, or does not fit the other, or cannot be mapped.
    """
    config = read_config(read_json(folder / CONFIG), str(folder / CONFIG))
    unet = skeleton(config, str(folder / CONFIG))
    state, path = read_weights(folder, variant)
    state = current_names(state)
    check_fit(state, unet.state_dict(), str(path), DIFFUSERS_SWITCHES)
    if mapped:
        _check_mappable(state, path)
    return fill(unet, state, copy=not mapped)


def _check_mappable(state: Mapping[str, Tensor], path: Path) -> None:
    """Raise ValueError for weights, or shards with this index, that `fill` has to copy."""
    if ".safetensors" not in path.suffixes:
        raise ValueError(f"mapped: the weights of {path} are in a torch file, not in safetensors")
    for key, value in state.items():
        if value.dtype != torch.float32:
            raise ValueError(
                f"mapped: the weights of {path} are not all float32, as networks are: "
                f"{key} is {value.dtype}"
            )


def read_config(values: Mapping[str, Any], source: str) -> UNetConfig:
    """UNetConfig of a config.json. A dropped attention_head_dim is 8 a head; null is one head.

    Raises:
        ValueError: another network's config, an unknown setting, or a value of the wrong type.
    """
    name = values.get("_class_name", CLASSES[0])
    if name not in CLASSES:
        raise ValueError(f"{source}: expected the config of a {CLASSES[0]}, found {name!r}")
    ours = values.get(OURS, {})
    if not isinstance(ours, dict):
        raise ValueError(f"{source}: {OURS}: expected an object, found {ours!r}")
    settings = {k: v for k, v in values.items() if k != OURS and not k.startswith("_")} | ours
    known = {field.name for field in fields(UNetConfig)}
    unknown = [key for key, value in settings.items() if key not in known and value is not None]
    if unknown:
        raise ValueError(f"{source}: unknown settings {', '.join(unknown)}")
    return conform(UNetConfig, {k: v for k, v in settings.items() if k in known}, source)


def current_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict under diffusers' present names, attention projections as matrices [C, C].

    Raises:
        ValueError: a tensor is there under both its names.
    """
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        match = _PROJECTION.fullmatch(key)
        if match:
            block, name, leaf = match.groups()
            key = f"{block}.{_LEGACY.get(name, name)}.{leaf}"
            if value.ndim > 2 and value.shape[2:].numel() == 1:
                value = value.flatten(1)
        if key in renamed:
            raise ValueError(f"{key} is there twice, under its legacy and its present name")
        renamed[key] = value
    return renamed


def write_config(config: UNetConfig) -> dict[str, Any]:
    """The config.json of a network; `read_config` gives an equal UNetConfig."""
    exact = json.loads(json.dumps(config.to_dict()))
    view = {key: value for key, value in exact.items() if key not in _OWN_FIELDS}
    name, reasons = CLASSES[0], _beyond_diffusers(config)
    if reasons:
        name = CLASSES[1]
        refused = REFUSED + ", ".join(reasons)
        view["down_block_types"] = [refused for _ in config.down_block_types]
    elif config.num_attention_heads is not None:
        view["attention_head_dim"] = _head_dim(config)
    seen = view | {key: value for key, value in _OWN_FIELDS.items() if key not in view}
    ours = {key: value for key, value in exact.items() if value != seen[key]}
    return {"_class_name": name, **view} | ({OURS: ours} if ours else {})


def _beyond_diffusers(config: UNetConfig) -> list[str]:
    """Why UNet2DModel would compute something else; empty if it would not."""
    reasons = []
    if config.dims != 2:
        reasons.append(f"dims={config.dims}")
    if config.time_proj_dim not in (None, config.block_out_channels[0]):
        reasons.append(f"time_proj_dim={config.time_proj_dim}")
    if config.downsample_type == "pool" or config.upsample_type == "nearest":
        reasons.append("resampling without convolution")
    widths = {head_dim for _, head_dim in _heads(config)}
    if config.num_attention_heads is not None and not _is_one_each(config) and len(widths) > 1:
        reasons.append(f"num_attention_heads={config.num_attention_heads}")
    return reasons


def _head_dim(config: UNetConfig) -> int | None:
    """attention_head_dim that gives the same heads as num_attention_heads; None: one head."""
    return None if _is_one_each(config) else _heads(config)[0][1]


def _is_one_each(config: UNetConfig) -> bool:
    return all(heads == 1 for heads, _ in _heads(config))


def _heads(config: UNetConfig) -> list[tuple[int, int]]:
    """(heads, channels per head) of every attention layer."""
    channels = config.block_out_channels
    down = zip(config.down_block_types, channels, strict=True)
    up = zip(config.up_block_types, reversed(channels), strict=True)
    middle = config.mid_block_type is not None and config.add_attention
    return [
        *(config.attention_heads(c) for kind, c in down if kind.startswith("Attn")),
        *([config.attention_heads(channels[-1])] if middle else []),
        *(config.attention_heads(c, up=True) for kind, c in up if kind.startswith("Attn")),
    ]
