"""What the search for candidates has found, kept in a file as it is found: a sender that was
stopped goes on from there, and ends with the same bytes.

    a line of JSON       the settings that these searches belong to
    records              32 bytes each, in the order of their searches:
        what was searched    16 bytes, BLAKE2b of all arguments of ``channel.choose``
        number, missed       its result, uint32 and float64, little-endian
        CRC-32               of the 28 bytes before

Nearly all of a sender's time goes into those searches, and a search's result depends on nothing but
its arguments. So a record stands for its search wherever it fits, and for no other: where the
network rounds otherwise than in the run before, the search is done again. Records are read up to
the first damaged one, such as a process leaves that was killed while it wrote.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import torch
from torch import Tensor

from fastddpm import atomic
from fastddpm.codec.channel import Choice, Place, choose

KIND = "journal of fastddpm.codec"
_NAME_BYTES = 16
_RESULT = struct.Struct(f"<{_NAME_BYTES}sId")
_RECORD_BYTES = _RESULT.size + 4


class Journal:
    """``with Journal(path, settings) as journal: codec.encode(images, journal=journal)``

    path:      made with the first search, and for the caller to ``remove`` at the end.
    settings:  plain values that tell one job from another.
    overwrite: replace a journal of other settings, which is refused otherwise.

    Raises ValueError for a journal of other settings, or a file that is none.
    """

    def __init__(self, path: Path, settings: dict[str, Any], *, overwrite: bool = False) -> None:
        self.path = path
        # Bytes of an earlier run that are damaged.
        self.left_out = 0
        self._settings = json.loads(json.dumps({"kind": KIND, **settings}))
        self._found: dict[bytes, Choice] = {}
        self._file: IO[bytes] | None = None
        if path.exists():
            self._read(overwrite)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __len__(self) -> int:
        """Searches whose results are kept."""
        return len(self._found)

    def choose(
        self,
        place: Place,
        shift: Tensor,
        ratio: Tensor,
        tolerance: float,
        most: int,
        device: torch.device,
    ) -> Choice:
        """``channel.choose``, unless its result is here already."""
        digest = hashlib.blake2b(digest_size=_NAME_BYTES)
        digest.update(repr((*place, tolerance, most, device.type)).encode())
        digest.update(shift.numpy().tobytes() + ratio.numpy().tobytes())
        name = digest.digest()
        if name not in self._found:
            self._keep(name, choose(place, shift, ratio, tolerance, most, device))
        return self._found[name]

    def remove(self) -> None:
        """Once what it was kept for is written."""
        self.path.unlink(missing_ok=True)

    def _keep(self, name: bytes, choice: Choice) -> None:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Anew, without what was damaged.
            before = b"".join(_record(*found) for found in self._found.items())
            atomic.write(self.path, json.dumps(self._settings).encode() + b"\n" + before)
            self._file = self.path.open("ab")
        self._file.write(_record(name, choice))
        # To the system, so that a killed process loses nothing.
        self._file.flush()
        self._found[name] = choice

    def _read(self, overwrite: bool) -> None:
        heading, _, records = self.path.read_bytes().partition(b"\n")
        if not self._is_of_our_settings(heading, overwrite):
            return
        end = 0
        while (found := _unpacked(records[end : end + _RECORD_BYTES])) is not None:
            self._found[found[0]] = found[1]
            end += _RECORD_BYTES
        self.left_out = len(records) - end

    def _is_of_our_settings(self, heading: bytes, overwrite: bool) -> bool:
        """False for a journal to replace; ValueError for one that must not be."""
        try:
            found = json.loads(heading)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict) or found.get("kind") != KIND:
            raise ValueError(f"{self.path} is no {KIND}, or its beginning is damaged: remove it")
        names = sorted({*found, *self._settings})
        other = [name for name in names if found.get(name) != self._settings.get(name)]
        if other and not overwrite:
            raise ValueError(
                f"{self.path} is kept of a job with other settings ({', '.join(other)}), which "
                "was stopped: choose another --out, or --overwrite"
            )
        return not other


def _record(name: bytes, choice: Choice) -> bytes:
    content = _RESULT.pack(name, *choice)
    return content + zlib.crc32(content).to_bytes(4, "little")


def _unpacked(record: bytes) -> tuple[bytes, Choice] | None:
    """What ``_record`` packed; None for anything else."""
    content, check = record[: _RESULT.size], record[_RESULT.size :]
    if len(check) < 4 or zlib.crc32(content).to_bytes(4, "little") != check:
        return None
    name, number, missed = _RESULT.unpack(content)
    return name, Choice(number, missed)
