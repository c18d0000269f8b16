"""Checkpoints of a run: one safetensors file each, written whole or not at all.

    checkpoints/step-00001000.safetensors       tensors: model/ ema/ optimizer/ meter/ rng/
                                                metadata "fastddpm": step, settings, ... as JSON

A file is replaced in one go (`fastddpm.atomic`), so a run killed at any moment leaves its last
checkpoint whole.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fastddpm import atomic

FORMAT = 1
METADATA_KEY = "fastddpm"


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint after `step` optimisation steps lies."""
    return folder / f"step-{step:08d}.safetensors"


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in `folder`, oldest first."""
    return sorted(folder.glob("step-*.safetensors"))


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Writes `tensors` (any device, any layout) and the JSON-able `record` to `path`, atomically.

    Raises OSError if the disk is full or the folder cannot be written; what was at `path` stays.
    """
    packed = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    metadata = {METADATA_KEY: json.dumps({"format": FORMAT, **record})}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.replacing(path) as partial:
        try:
            save_file(packed, partial, metadata)
        except SafetensorError as error:
            raise OSError(f"cannot write {path}: {error}") from error


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors on the CPU, record) of a checkpoint.

    Raises ValueError for a file that is truncated, damaged or not a checkpoint of a run.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # Not a mapping: it has keys() but cannot be iterated.
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path}: truncated or damaged checkpoint: {error}") from error
    if METADATA_KEY not in metadata:
        raise ValueError(f"{path}: expected a checkpoint of a training run, got other safetensors")
    record: dict[str, Any] = json.loads(metadata[METADATA_KEY])
    if record["format"] != FORMAT:
        raise ValueError(f"{path}: expected checkpoint format {FORMAT}, got {record['format']}")
    return tensors, record


def prune(folder: Path, keep: int) -> None:
    """Removes all but the newest `keep` checkpoints, and what a killed write left behind."""
    for stale in [*checkpoints(folder)[:-keep], *folder.glob("*" + atomic.PARTIAL)]:
        stale.unlink(missing_ok=True)
