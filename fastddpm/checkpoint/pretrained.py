"""from_pretrained and save_pretrained: which family a checkpoint is, and where its parts lie."""

from __future__ import annotations

import errno
import importlib.resources
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastddpm.checkpoint.diffusers import CONFIG, WEIGHTS, read_unet, write_config
from fastddpm.checkpoint.files import (
    TENSOR_SUFFIXES,
    read_json,
    read_tensors,
    refuse_file_name,
    replace_folder,
)
from fastddpm.checkpoint.openai import KWARGS, is_openai, read_openai
from fastddpm.checkpoint.schedulers import read_scheduler, write_scheduler
from fastddpm.diffusion import GaussianDiffusion
from fastddpm.schedule import NoiseSchedule
from fastddpm.unet import UNet

SCHEDULER = "scheduler_config.json"
MODEL_INDEX = "model_index.json"


def from_pretrained(
    name_or_path: str | os.PathLike[str], *, kwargs: Mapping[str, Any] | None = None
) -> tuple[UNet, GaussianDiffusion]:
    """A network (float32, on the CPU, in evaluation mode) and the process it was trained for.

    Args:
        name_or_path: a built-in name (`builtin_names`; write ./mnist for a folder of that name), a
            diffusers folder, flat or with unet/ and scheduler/ inside, or an OpenAI state dict or
            its folder.
        kwargs: for an OpenAI state dict, the arguments it was trained with: UNetModel's, or the
            flags of improved- and guided-diffusion's scripts (`checkpoint.openai_kwargs`).
            None: kwargs.json beside the file.

    A diffusers folder without a scheduler gets 1000 linear steps and diffusers' fixed_small, or
    learned_range where the network has two outputs per channel. An OpenAI state dict gets
    OpenAI's defaults: 1000 linear steps with fixed_large, or learned_range.

    Raises:
        ValueError: nothing is there, a file is damaged, or the weights do not fit the settings; the
            message lists the keys and shapes that disagree and the settings to check.
    """
    path = _locate(name_or_path)
    if path.is_dir():
        if (path / CONFIG).is_file() or (path / "unet" / CONFIG).is_file():
            _no_kwargs(path, kwargs)
            return _read_diffusers(path)
        path = _state_file(path)
    state = read_tensors(path)
    if is_openai(state):
        return read_openai(state, path, kwargs)
    if (path.parent / CONFIG).is_file():
        _no_kwargs(path, kwargs)
        return _read_diffusers(path.parent)
    first = ", ".join(list(state)[:3])
    raise ValueError(
        f"{path}: expected OpenAI's names (input_blocks...) or a {CONFIG} beside it, found {first}"
    )


def save_pretrained(
    folder: str | os.PathLike[str], unet: UNet, diffusion: GaussianDiffusion
) -> None:
    """Write a checkpoint in diffusers' layout, flat: UNet2DModel and DDPMPipeline read it.

    `from_pretrained` gives back the same network and tables bit for bit (the network in float32).
    Settings that diffusers lacks are kept for it; where diffusers would compute something else
    without them it refuses the files. The checkpoint appears whole or not at all, and one that
    stood there stays until then.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
        ValueError: `folder` is a file, or named like one.
    """
    refuse_file_name(Path(folder))
    index = {
        "_class_name": "DDPMPipeline",
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    contents = {
        MODEL_INDEX: index,
        SCHEDULER: write_scheduler(diffusion),
        CONFIG: write_config(unet.config),
    }
    texts = {name: json.dumps(value, indent=2) + "\n" for name, value in contents.items()}
    state = {key: value.detach().cpu().contiguous() for key, value in unet.state_dict().items()}
    replace_folder(Path(folder), texts, WEIGHTS, state)


def builtin_names() -> list[str]:
    """The models that are installed with the package."""
    assets = importlib.resources.files("fastddpm") / "assets"
    if not assets.is_dir():
        return []
    return sorted(entry.name for entry in assets.iterdir() if (entry / CONFIG).is_file())


def _locate(name_or_path: str | os.PathLike[str]) -> Path:
    names = builtin_names()
    known = ", ".join(names) or "none"
    # Path("") is the current folder, which nobody asked for.
    if not os.fspath(name_or_path):
        raise ValueError(
            f"expected a file, a folder or a built-in model ({known}), got an empty name"
        )
    if name_or_path in names:
        assets = importlib.resources.files("fastddpm") / "assets"
        return Path(str(assets / str(name_or_path)))
    path = Path(name_or_path)
    if not _exists(path):
        raise ValueError(
            f"expected a file, a folder or a built-in model ({known}), found nothing at {path}; "
            "a model of a hub must be downloaded first"
        )
    return path


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        # No file can have such a name.
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise


def _read_diffusers(folder: Path) -> tuple[UNet, GaussianDiffusion]:
    pipeline = not (folder / CONFIG).is_file()
    unet = read_unet(folder / "unet" if pipeline else folder)
    doubled = unet.config.out_channels == 2 * unet.config.in_channels
    places = [folder / SCHEDULER, folder / "scheduler" / SCHEDULER]
    if (folder.parent / MODEL_INDEX).is_file():
        # The folder is the unet/ of a pipeline, whose scheduler lies beside it.
        places.append(folder.parent / "scheduler" / SCHEDULER)
    for place in places:
        if place.is_file():
            return unet, read_scheduler(read_json(place), str(place), doubled=doubled)
    variance = "learned_range" if doubled else "fixed_small"
    return unet, GaussianDiffusion(NoiseSchedule.linear(1000), variance=variance)


def _state_file(folder: Path) -> Path:
    files = sorted(p for p in folder.iterdir() if p.suffix in TENSOR_SUFFIXES)
    if len(files) != 1:
        found = ", ".join(sorted(p.name for p in folder.iterdir())) or "nothing"
        raise ValueError(
            f"{folder}: expected {CONFIG} and {WEIGHTS} (diffusers) or {KWARGS} and one state dict "
            f"(OpenAI), found {found}"
            + (
                f"; did you mean {folder / 'model'}?"
                if (folder / "model" / CONFIG).is_file()
                else ""
            )
        )
    return files[0]


def _no_kwargs(path: Path, kwargs: Mapping[str, Any] | None) -> None:
    if kwargs is not None:
        raise ValueError(f"{path} has its settings in {CONFIG}; kwargs are for OpenAI's files only")
