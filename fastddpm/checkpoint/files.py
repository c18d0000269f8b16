"""Files of a checkpoint, read with care and replaced whole.

Tensors come from safetensors, or from torch files through `pickles`, so no file can run code. A
file that is truncated, corrupt or of another kind is a ValueError that names it. A folder is
written beside its place and renamed into it, so a reader, or a run that starts again after a
crash, meets the old checkpoint or the new one and never a mixture.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from fastddpm import atomic
from fastddpm.checkpoint.pickles import read_pickle
from fastddpm.checkpoint.training_files import is_state_dict

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
TENSOR_SUFFIXES = (".safetensors", *TORCH_SUFFIXES)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ValueError for anything else, naming the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    # UnicodeDecodeError and JSONDecodeError are ValueErrors; deep nesting is a RecursionError.
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The state dict of a .safetensors or torch file, on the CPU.

    Raises:
        ValueError: the file is truncated, corrupt, asks for code to run, or is no state dict.
    """
    value = read_file(path)
    if is_state_dict(value):
        return dict(value)
    if not isinstance(value, Mapping) or not value:
        raise ValueError(f"{path}: expected a state dict, found {type(value).__name__}")
    others = [str(k) for k, v in value.items() if not (isinstance(k, str) and torch.is_tensor(v))]
    raise ValueError(
        f"{path}: expected a state dict of tensors, found other values under "
        f"{', '.join(others[:5])}; save the network's own state dict"
    )


def read_file(path: Path) -> Any:
    """What a .safetensors or torch file holds, on the CPU: a state dict, or more around it.

    Raises:
        ValueError: the file is truncated, corrupt, or asks for code to run.
    """
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise ValueError(f"{path} is truncated or corrupt: {error}") from error
    if path.suffix in TORCH_SUFFIXES:
        return read_pickle(path)
    known = ", ".join(TENSOR_SUFFIXES)
    raise ValueError(f"{path}: expected a file that ends in one of {known}")


def refuse_file_name(folder: Path) -> None:
    """Raise ValueError if a checkpoint's folder is to be named like a file of tensors."""
    if folder.suffix.lower() in TENSOR_SUFFIXES:
        raise ValueError(
            f"{folder}: expected the name of a folder, got one that ends in {folder.suffix}; "
            "a folder is written, with the tensors and their settings inside"
        )


def replace_folder(folder: Path, files: Mapping[str, str | bytes]) -> None:
    """Make `folder` hold these files, texts and tensors (`encoded`), whole or not at all.

    The last of `files` is the one without which no reader takes the folder for a checkpoint.
    Files under other names stay. Where only one changes, as when training saves again, the change
    is one rename. Otherwise the folder is exchanged by two renames: a crash just between them
    leaves the old checkpoint whole, as `.NAME.*/old` beside its place.

    Raises:
        OSError: the disk is full or the place cannot be written; what stood there still stands.
        ValueError: `folder` is a file.
    """
    folder = Path(os.path.realpath(folder))
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; expected a folder, or a place for one")
    folder.parent.mkdir(parents=True, exist_ok=True)
    in_place = folder.is_dir() and _can_fill(folder, files)
    base = folder if in_place else folder.parent
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=base) as work:
        new, old = Path(work, "new"), Path(work, "old")
        new.mkdir()
        for name, content in files.items():
            atomic.write(new / name, content)
        if in_place:
            for name in files:
                os.replace(new / name, folder / name)
        elif folder.exists():
            _exchange(new, folder, old)
        else:
            new.rename(folder)


def encoded(name: str, value: Any) -> bytes:
    """The contents of a safetensors file of a state dict, or of a torch file of plain values."""
    if name.endswith(".safetensors"):
        return safetensors.torch.save(value, {"format": "pt"})
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _can_fill(folder: Path, files: Mapping[str, str | bytes]) -> bool:
    """Whether replacing file by file passes through no state that a reader would mistake."""
    changing = [name for name, content in files.items() if not _stands(folder / name, content)]
    return len(changing) < 2 or not (folder / list(files)[-1]).is_file()


def _stands(path: Path, content: str | bytes) -> bool:
    """Whether a file has this text; tensors are taken to have changed."""
    return isinstance(content, str) and path.is_file() and path.read_bytes() == content.encode()


def _exchange(new: Path, folder: Path, old: Path) -> None:
    folder.rename(old)
    try:
        new.rename(folder)
    except BaseException:
        old.rename(folder)
        raise
    for entry in old.iterdir():
        if not (folder / entry.name).exists():
            entry.rename(folder / entry.name)
