"""Files of a checkpoint, read with care.

Tensors come from safetensors, or from torch files through `pickles`, so no file can run code. A
file that is truncated, corrupt or of another kind is a ValueError that names it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

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


def encoded(name: str, value: Any) -> bytes:
    """The contents of a safetensors file of a state dict, or of a torch file of plain values."""
    if name.endswith(".safetensors"):
        return safetensors.torch.save(value, {"format": "pt"})
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()
