"""Checkpoints of a run: one safetensors file each, written whole or not at all.

    checkpoints/step-00001000.safetensors       tensors: model/ ema/ optimizer/ meter/ rng/
                                                metadata "fastddpm": step, settings, ... as JSON

A file is written under a temporary name, flushed to the disk and renamed; a rename replaces in
one go.  So a run killed at any moment leaves its last checkpoint whole.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

FORMAT = 1
PARTIAL = ".partial"
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
    partial = path.with_name(path.name + PARTIAL)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        try:
            save_file(packed, partial, metadata)
        except SafetensorError as error:
            raise OSError(f"cannot write {path}: {error}") from error
        flush(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    flush(path.parent)


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors on the CPU, record) of a checkpoint.

    Raises ValueError for a file that is truncated, damaged or not a checkpoint of a run.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
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
    for stale in [*checkpoints(folder)[:-keep], *folder.glob("*" + PARTIAL)]:
        stale.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a small text file atomically."""
    partial = path.with_name(path.name + PARTIAL)
    try:
        partial.write_text(text, encoding="utf-8")
        flush(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Forces a file, or a folder's list of names, to the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a folder.
    # Windows flushes only files opened for writing.
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
