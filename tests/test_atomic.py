"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from fastddpm import atomic


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    atomic.write(path, b"old")
    with atomic.replacing(path) as partial:
        partial.write_bytes(b"new")
        assert partial.parent == tmp_path
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_text_is_utf_8_with_the_line_ends_given(tmp_path: Path) -> None:
    atomic.write(tmp_path / "a.txt", "β\n")
    assert (tmp_path / "a.txt").read_bytes() == b"\xce\xb2\n"


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "a.txt"
    atomic.write(path, "old")
    with pytest.raises(error), atomic.replacing(path) as partial:
        partial.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "a.txt"
    atomic.write(path, "old")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(OSError, match="No space"):
            atomic.write(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_the_file_and_its_name_reach_the_disk_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Content before the rename, the folder's list of names after it."""
    path = tmp_path / "a.txt"
    seen: list[tuple[bool, bool]] = []
    fsync = os.fsync

    def recorded(descriptor: int) -> None:
        folder = os.path.samestat(os.fstat(descriptor), os.stat(tmp_path))
        seen.append((folder, path.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    atomic.write(path, "new")
    assert seen == [(False, False), (True, True)]
