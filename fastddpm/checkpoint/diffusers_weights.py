"""Which files of a diffusers folder hold the network's weights.

diffusion_pytorch_model.safetensors             or .bin, written by older versions
diffusion_pytorch_model.fp16.safetensors        a variant: fp16, non_ema, ...
diffusion_pytorch_model.safetensors.index.json  which shard has which tensor, and then
diffusion_pytorch_model-00001-of-00002.safetensors, ...
"""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from fastddpm.checkpoint.conform import brief
from fastddpm.checkpoint.files import read_json, read_tensors

STEM = "diffusion_pytorch_model"
_VARIANT = re.compile(rf"{STEM}\.([\w-]+)\.(?:safetensors|bin)(?:\.index\.json)?")
_SHARD = re.compile(rf"{STEM}(\.[\w-]+)?-\d{{5}}-of-\d{{5}}(\.[\w-]+)?\.(safetensors|bin)")


def read_weights(folder: Path, variant: str | None) -> tuple[dict[str, Tensor], Path]:
    """(state dict, the file that it was read from).

    variant: None: the plain files, else the only variant that is there.

    Raises:
        ValueError: there is no such file, or it is damaged, or shards disagree with their index.
    """
    path = _weights_file(folder, variant)
    if path.suffix == ".json":
        return _read_shards(path), path
    return read_tensors(path), path


def _weights_file(folder: Path, variant: str | None) -> Path:
    if variant is None and not _files(folder, None):
        there = sorted({m[1] for p in folder.iterdir() if (m := _VARIANT.fullmatch(p.name))})
        if len(there) > 1:
            raise ValueError(f"{folder}: choose a variant out of {', '.join(there)}")
        variant = there[0] if there else None
    if paths := _files(folder, variant):
        return paths[0]
    wanted = f"{STEM}.{variant}.safetensors" if variant else f"{STEM}.safetensors"
    found = ", ".join(sorted(p.name for p in folder.iterdir())) or "nothing"
    raise ValueError(f"{folder}: expected {wanted}, found {found}")


def _files(folder: Path, variant: str | None) -> list[Path]:
    middle = f".{variant}" if variant else ""
    kinds = [f"{middle}.{kind}" for kind in ("safetensors", "bin")]
    # Indices have had the variant at either place.
    names = [*kinds, *(f"{k}.index.json" for k in kinds)]
    names += [f".{k}.index{middle}.json" for k in ("safetensors", "bin") if middle]
    return [folder / f"{STEM}{name}" for name in names if (folder / f"{STEM}{name}").is_file()]


def _read_shards(index: Path) -> dict[str, Tensor]:
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise ValueError(
            f"{index}: weight_map: expected names and their files, found {brief(files)}"
        )
    for key, name in files.items():
        # A name with a folder in it could lead anywhere.
        if not isinstance(name, str) or not _SHARD.fullmatch(name):
            raise ValueError(f"{index}: {key}: expected a shard beside it, found {brief(name)}")
    state: dict[str, Tensor] = {}
    for name in sorted(set(files.values())):
        if not (index.parent / name).is_file():
            raise ValueError(f"{index}: expected the shard {name} beside it, found nothing")
        shard = read_tensors(index.parent / name)
        listed = {key for key, file in files.items() if file == name}
        if shard.keys() != listed:
            differing = ", ".join(sorted(shard.keys() ^ listed)[:5])
            raise ValueError(f"{index.parent / name} does not fit {index.name}: {differing}")
        state |= shard
    return state
