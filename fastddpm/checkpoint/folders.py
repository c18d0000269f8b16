"""Folders of checkpoints: by which files they are recognised, and how they are replaced.

A folder is written beside its place and renamed into it, so a reader, or a run that starts again
after a crash, meets the old checkpoint or the new one and never a mixture. It holds one layout: a
checkpoint written beside another layout's would be passed over for the old one.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from fastddpm import atomic
from fastddpm.checkpoint.diffusers import CONFIG
from fastddpm.checkpoint.files import TENSOR_SUFFIXES
from fastddpm.checkpoint.tensor_bundle.writer import LATEST


def recognised(folder: Path) -> list[Path]:
    """The files by which a folder is taken for a checkpoint: of the first kind that is there.

    config.json, unet/config.json (a diffusers pipeline), TensorFlow's indices, files of tensors.
    """
    for config in (folder / CONFIG, folder / "unet" / CONFIG):
        if config.is_file():
            return [config]
    indices = sorted(path for path in folder.glob("*.index") if path.is_file())
    return indices or sorted(p for p in folder.iterdir() if p.suffix in TENSOR_SUFFIXES)


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
        ValueError: `folder` is a file, or holds a checkpoint of another layout.
    """
    folder = Path(os.path.realpath(folder))
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; expected a folder, or a place for one")
    if folder.is_dir():
        _refuse_other_layout(folder, files)
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


def _refuse_other_layout(folder: Path, files: Mapping[str, str | bytes]) -> None:
    """Raise ValueError if the folder is recognised by files that `files` would not replace."""
    found = recognised(folder)
    replaced = any(path.relative_to(folder).as_posix() in files for path in found)
    # Of several TensorFlow checkpoints the file LATEST names the one that is read.
    superseded = any(path.suffix == ".index" for path in found) and LATEST in files
    if found and not (replaced or superseded):
        raise ValueError(
            f"{folder} holds a checkpoint of another layout: found {found[0]}, and would write "
            f"{', '.join(files)}; choose another folder, or delete that checkpoint"
        )


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
