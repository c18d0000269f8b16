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
from fastddpm.checkpoint.files import TORCH_SUFFIXES, encoded, read_file, read_json
from fastddpm.checkpoint.folders import recognised, refuse_file_name, replace_folder
from fastddpm.checkpoint.ho import read_ho, read_ho_bundle
from fastddpm.checkpoint.lucidrains import is_lucidrains, lucidrains_process, refuse_lucidrains
from fastddpm.checkpoint.openai import KWARGS, is_openai, read_openai
from fastddpm.checkpoint.ports import PESSER, PYTORCH_DDPM
from fastddpm.checkpoint.pytorch_ddpm import read_pytorch_ddpm
from fastddpm.checkpoint.schedulers import read_scheduler, write_scheduler
from fastddpm.checkpoint.tensor_bundle import find_prefix
from fastddpm.checkpoint.training_files import Contents, unpack
from fastddpm.diffusion import GaussianDiffusion
from fastddpm.schedule import NoiseSchedule
from fastddpm.unet import UNet

SCHEDULER = "scheduler_config.json"
MODEL_INDEX = "model_index.json"


def from_pretrained(
    name_or_path: str | os.PathLike[str],
    *,
    kwargs: Mapping[str, Any] | None = None,
    ema: bool = True,
    variant: str | None = None,
    mapped: bool = False,
) -> tuple[UNet, GaussianDiffusion]:
    """A network (float32, on the CPU, in evaluation mode) and the process it was trained for.

    Args:
        name_or_path: a built-in name (`builtin_names`; write ./mnist for a folder of that name), a
            diffusers folder, flat or with unet/ and scheduler/ inside; a torch or safetensors file
            of one of the families below, or its folder; a TensorFlow checkpoint of Ho's
            (model.ckpt-790000, one of its files, or their folder).
        kwargs: settings for a family whose files do not hold them; None: those of the file that its
            code writes beside the checkpoint, in brackets, else its defaults.
            OpenAI: arguments of UNetModel or flags of its scripts (`checkpoint.openai_kwargs`),
            which must be given [kwargs.json]. Ho and the ports of his network by pesser and
            ermongroup: `checkpoint.ho_settings` [kwargs.json]. pytorch-ddpm: flags of its main.py
            [flagfile.txt]. Diffusions of lucidrains: objective.
        ema: of a checkpoint with weights and their averages take the averages; False: the weights.
        variant: of a diffusers folder, "fp16", "non_ema", ...; None: its plain files.
        mapped: of a diffusers folder leave float32 weights in the mapping of their safetensors
            file, which is faster and shared between processes. The file may then be replaced
            (`save_pretrained` does) or deleted, but not written into while the network lives. What
            cannot be mapped (other layouts, torch files, other dtypes) is refused.

    A diffusers folder without a scheduler gets 1000 linear steps and diffusers' fixed_small, or
    learned_range where the network has two outputs per channel. An OpenAI state dict gets
    OpenAI's defaults: 1000 linear steps with fixed_large, or learned_range.

    Raises:
        ValueError: nothing is there, a file is damaged, or the weights do not fit the settings; the
            message lists the keys and shapes that disagree and the settings to check. Or
            mapped=True, and the weights cannot be.
        OSError: a file cannot be read.
    """
    path = _locate(name_or_path)
    if path.is_dir():
        if any(found.name == CONFIG for found in recognised(path)):
            _no_kwargs(path, kwargs)
            return _read_diffusers(path, variant, mapped=mapped)
        if (prefix := find_prefix(path)) is None:
            path = _state_file(path)
    else:
        prefix = find_prefix(path)
    if mapped:
        _refuse_mapped(path, prefix)
    if prefix is not None:
        return read_ho(read_ho_bundle(prefix, ema=ema), prefix, kwargs)
    contents = unpack(read_file(path), str(path), ema=ema)
    return _read_family(contents, path, kwargs, variant)


def _read_family(
    contents: Contents, path: Path, kwargs: Mapping[str, Any] | None, variant: str | None
) -> tuple[UNet, GaussianDiffusion]:
    """A network by its names, and the process by its tables or its family's settings."""
    if "betas" in contents.process:
        inner = None if kwargs is None else {k: v for k, v in kwargs.items() if k != "objective"}
        unet, _ = _read_family(Contents(contents.network, {}), path, inner or None, variant)
        objective = None if kwargs is None else kwargs.get("objective")
        return unet, lucidrains_process(contents.process, objective, str(path))
    state = contents.network
    if is_openai(state):
        return read_openai(state, path, kwargs)
    if PESSER.first in state:
        return read_ho(state, path, kwargs)
    if PYTORCH_DDPM.first in state:
        return read_pytorch_ddpm(state, path, kwargs)
    if is_lucidrains(state):
        refuse_lucidrains(state, str(path))
    if (path.parent / CONFIG).is_file():
        _no_kwargs(path, kwargs)
        return _read_diffusers(path.parent, variant)
    first = ", ".join(key[:60] for key in list(state)[:3])
    raise ValueError(
        f"{path}: expected a {CONFIG} beside it (diffusers), or the names of OpenAI "
        f"(input_blocks...), of Ho's ports ({PESSER.first}) or of pytorch-ddpm "
        f"({PYTORCH_DDPM.first}); found {first}"
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
        ValueError: `folder` is a file, named like one, or holds a checkpoint of another layout.
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
    state = {key: value.detach().cpu().contiguous() for key, value in unet.state_dict().items()}
    files: dict[str, str | bytes] = {WEIGHTS: encoded(WEIGHTS, state)}
    files |= {name: json.dumps(value, indent=2) + "\n" for name, value in contents.items()}
    replace_folder(Path(folder), files)


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
    # The prefix of a TensorFlow checkpoint is itself no file.
    if not _exists(path) and not _exists(Path(f"{path}.index")):
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


def _read_diffusers(
    folder: Path, variant: str | None, *, mapped: bool = False
) -> tuple[UNet, GaussianDiffusion]:
    pipeline = not (folder / CONFIG).is_file()
    unet = read_unet(folder / "unet" if pipeline else folder, variant, mapped=mapped)
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
    files = recognised(folder)
    if len(files) != 1:
        found = ", ".join(sorted(p.name for p in folder.iterdir())) or "nothing"
        raise ValueError(
            f"{folder}: expected {CONFIG} and {WEIGHTS} (diffusers), one torch or safetensors file "
            f"with {KWARGS} where its family needs it, or TensorFlow's .index and .data files; "
            f"found {found}"
            + (
                f"; did you mean {folder / 'model'}?"
                if (folder / "model" / CONFIG).is_file()
                else ""
            )
        )
    return files[0]


def _refuse_mapped(path: Path, prefix: Path | None) -> None:
    """Raise ValueError: what is no diffusers folder is read into tensors of our own layout."""
    if prefix is not None:
        reason = f"the weights of {prefix} are in a TensorFlow checkpoint"
    elif path.suffix in TORCH_SUFFIXES:
        reason = f"the weights of {path} are in a torch file"
    elif (path.parent / CONFIG).is_file():
        reason = f"{path} is one file of a diffusers folder: give {path.parent}"
    else:
        reason = f"{path} is no part of a diffusers folder"
    raise ValueError(f"mapped: {reason}; only float32 safetensors of a diffusers folder are mapped")


def _no_kwargs(path: Path, kwargs: Mapping[str, Any] | None) -> None:
    if kwargs is not None:
        raise ValueError(
            f"{path} has its settings in {CONFIG}: kwargs are for families whose files have none"
        )
