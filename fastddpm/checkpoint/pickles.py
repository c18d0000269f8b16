"""Torch files, read so that no file can run code or take more memory than it has bytes.

A torch file is a zip archive (before torch 1.6: a plain sequence) of a pickle and of the tensors'
bytes. A pickle is a program. Before it runs, under torch.load(weights_only=True), three things are
looked at that torch does not look at:

    names     the pickle may call nothing but torch's own builders of tensors
    sharing   what it uses again and again counts as often (sharing.py)
    sizes     archive members are stored, not compressed; a tensor has the bytes that it shows
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO

import torch
from torch import Tensor

from fastddpm.checkpoint.sharing import Sharing

# What torch's reader raises for damaged bytes, as found by flipping and cutting them
# (tests/test_checkpoint_files.py).
_DAMAGED = (
    RuntimeError,
    OSError,
    struct.error,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    NotImplementedError,
    OverflowError,
    MemoryError,
)
# Builders of plain tensors and dicts, and types that they take; nothing that a file could make
# large or slow. torch also allows bytearray(n), torch.Tensor(n), UntypedStorage(n), _codecs.encode.
ALLOWED = re.compile(
    r"collections (OrderedDict|Counter)"
    r"|torch\._utils _rebuild_(tensor|tensor_v2|parameter)"
    r"|torch\.nn\.parameter Parameter"
    r"|torch \w+Storage"
    r"|torch (float|bfloat|u?int|bool|Size|device)\w*"
)
# In the plain sequence: a magic number, a version, the machine, the value, the storages' names.
_PLAIN_PICKLES = 5


def read_pickle(path: Path) -> Any:
    """The value in a torch file, its tensors on the CPU.

    Raises:
        ValueError: the file is truncated, corrupt, or asks for more than tensors and plain values.
    """
    # Opened here, so that a file that cannot be opened is not taken for a damaged one.
    with path.open("rb") as file, warnings.catch_warnings():
        # torch warns of TypedStorage for old files, Python of odd strings in damaged ones; the user
        # can do nothing about either.
        warnings.simplefilter("ignore")
        try:
            _look_at(file)
            file.seek(0)
            value = torch.load(file, map_location="cpu", weights_only=True)
        except ForeignObject as error:
            raise ValueError(
                f"{path} holds Python objects other than tensors, which are never loaded: it asks "
                f"for {error}. Where the file is trusted, save the network's state dict alone with "
                "the code that made it"
            ) from error
        except _DAMAGED as error:
            # It may quote the file.
            reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
            raise ValueError(f"{path} is truncated, corrupt or no torch file: {reason}") from error
    for tensors in _state_dicts(value):
        _check_tensors(tensors, path)
    return value


class ForeignObject(ValueError):
    """A pickle names something that no network needs."""


def _look_at(file: BinaryIO) -> None:
    # torch's own test.
    is_archive = file.read(4) == b"PK\x03\x04"
    file.seek(0)
    if not is_archive:
        for _ in range(_PLAIN_PICKLES):
            _check_program(file)
        return
    with zipfile.ZipFile(file) as archive:
        size = file.seek(0, 2)
        members = archive.infolist()
        # Compressed members, and members that share bytes, could stand for any amount of memory.
        if any(m.compress_type != zipfile.ZIP_STORED for m in members):
            raise ValueError("expected stored members, found compressed ones")
        if sum(member.file_size for member in members) > size:
            raise ValueError(f"its members have more bytes than the {size} of the file")
        for member in members:
            # torch ignores case in names: it would read a storage "a" again for "A". torch.save
            # numbers its storages.
            name = member.orig_filename.lower()
            if re.match(r"[^/]*/data/(?!\d+\Z)", name, re.ASCII):
                raise ValueError(f"expected storages with numbers for names, found {name[:100]!a}")
            if name.endswith(".pkl"):
                _check_program(io.BytesIO(archive.read(member)))


def _check_program(pickled: IO[bytes]) -> None:
    """Raise ForeignObject if a pickle names something else than ALLOWED; it is not run.

    Raises ValueError if it stands for far more than it has bytes.
    """
    sharing = Sharing()
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name in ("GLOBAL", "INST") and not ALLOWED.fullmatch(str(argument)):
            raise ForeignObject(ascii(str(argument).replace(" ", ".")[:100]))
        if opcode.name in ("STACK_GLOBAL", "EXT1", "EXT2", "EXT4"):
            raise ForeignObject("an object that is not named in the plain way")
        sharing.follow(opcode.name, argument)


def _state_dicts(value: Any) -> Iterator[Mapping[str, Tensor]]:
    """The dicts with tensors in a value, and in the dicts and lists that it consists of."""
    parts = list(value.values()) if isinstance(value, Mapping) else value
    for part in (value, *(parts if isinstance(parts, (list, tuple)) else ())):
        if isinstance(part, Mapping):
            yield {str(k): v for k, v in part.items() if isinstance(v, Tensor)}


def _check_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise ValueError unless all are plain tensors whose every number is in the file."""
    size, total = path.stat().st_size, 0
    for key, value in tensors.items():
        if value.device.type != "cpu" or value.layout != torch.strided or value.is_quantized:
            raise ValueError(f"{path}: {key}: expected a plain tensor, found {value.layout}")
        own = value.numel() * value.element_size()
        total += own
        if own > value.untyped_storage().nbytes() or total > size:
            raise ValueError(
                f"{path}: {key}: {list(value.shape)} {value.dtype} shows more numbers than it has"
            )
