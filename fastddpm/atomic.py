"""Files that appear whole or not at all.

A file is written under a temporary name beside its place, forced to the disk and renamed; a rename
within a folder replaces in one go. So a reader, or a run that starts again after a crash, meets the
old file or the new one and never a part. A process that is killed leaves at most NAME.partial.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial"


def prepare(path: Path) -> None:
    """Make the folder of a file that will be written after long work.

    Raises OSError if it could not be written there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    partial = path.with_name(path.name + PARTIAL)
    partial.touch()
    partial.unlink()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write; it becomes ``path`` at the end of the block.

    If the block, the flush or the rename raises, what was at ``path`` stays and the temporary file
    is removed. Raises OSError if the disk is full or the folder cannot be written.
    """
    partial = path.with_name(path.name + PARTIAL)
    try:
        yield partial
        flush(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    flush(path.parent)


def write(path: Path, content: bytes | str) -> None:
    """Write bytes, or text as UTF-8, to ``path``: whole or not at all."""
    with replacing(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def flush(path: Path) -> None:
    """Force a file, or a folder's list of names, to the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a folder.
    # Windows flushes only files opened for writing.
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
