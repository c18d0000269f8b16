"""The tensors of a TensorBundle, by name.

The index holds, under the empty key, BundleHeaderProto (1 number of data files, 2 byte order,
3 version), and under each name BundleEntryProto (1 dtype, 2 shape, 3 data file, 4 offset, 5 size,
6 masked CRC-32C, 7 slices).

Source: tensorflow/core/protobuf/tensor_bundle.proto, tensor_shape.proto and types.proto.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastddpm.checkpoint.tensor_bundle.crc32c import crc32c, unmask
from fastddpm.checkpoint.tensor_bundle.protobuf import read_fields, signed
from fastddpm.checkpoint.tensor_bundle.table import read_table

# Of DataType; others (strings, resources) have no plain bytes or no use here.
DTYPES = {
    1: torch.float32,
    2: torch.float64,
    3: torch.int32,
    9: torch.int64,
    14: torch.bfloat16,
    19: torch.float16,
}
# A network of 35.7 million parameters with its averages and moments has 150 kB.
MAX_INDEX = 1 << 26
_DATA_FILE = re.compile(r"(.*)\.data-\d{5}-of-\d{5}")


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: `size` bytes at `offset` of data file `shard`."""

    dtype: int = 0
    shape: tuple[int, ...] = ()
    shard: int = 0
    offset: int = 0
    size: int = 0
    checksum: int = 0
    is_sliced: bool = False


class TensorBundle:
    """A TensorFlow checkpoint under a prefix: its index is read at once, its tensors on demand.

    Raises ValueError for an index that is damaged, or of another byte order or version.
    """

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        self.index = Path(f"{prefix}.index")
        self.entries: dict[str, Entry] = {}
        self.shards = 0
        if self.index.stat().st_size > MAX_INDEX:
            raise ValueError(f"{self.index}: expected an index of at most {MAX_INDEX} bytes")
        try:
            for key, value in read_table(self.index.read_bytes()):
                if key:
                    self.entries[key.decode()] = _entry(value)
                else:
                    self.shards = _header(value)
        except ValueError as error:
            raise ValueError(f"{self.index} is no TensorFlow checkpoint index: {error}") from error

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor that the index has."""
        return self.entries[name].shape

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """These tensors, their checksums verified.

        Raises ValueError for a tensor that is not as the index says, OSError for a missing file.
        """
        chosen = {name: self.entries[name] for name in names}
        sizes = {e.shard: self._data(e.shard).stat().st_size for e in chosen.values()}
        wanted = sum(entry.size for entry in chosen.values())
        # Entries may overlap, and so ask for more memory than the files have.
        if wanted > sum(sizes.values()):
            raise ValueError(
                f"{self.index}: {len(chosen)} tensors of {wanted} bytes do not fit the data files "
                f"of {sum(sizes.values())}"
            )
        return {name: self._tensor(name, e, sizes[e.shard]) for name, e in chosen.items()}

    def _data(self, shard: int) -> Path:
        return Path(f"{self.prefix}.data-{shard:05d}-of-{self.shards:05d}")

    def _tensor(self, name: str, entry: Entry, file_size: int) -> Tensor:
        where = f"{self._data(entry.shard)}: {name}"
        if entry.is_sliced or entry.dtype not in DTYPES:
            raise ValueError(f"{where}: expected a whole tensor of numbers, found {entry}")
        dtype = DTYPES[entry.dtype]
        if math.prod(entry.shape) * dtype.itemsize != entry.size:
            raise ValueError(f"{where}: {dtype} {list(entry.shape)} has not {entry.size} bytes")
        if entry.offset + entry.size > file_size:
            raise ValueError(
                f"{where}: {entry.size} bytes at {entry.offset} run past the end at {file_size}"
            )
        with self._data(entry.shard).open("rb") as file:
            file.seek(entry.offset)
            data = bytearray(file.read(entry.size))
        if len(data) != entry.size or crc32c(memoryview(data)) != unmask(entry.checksum):
            raise ValueError(f"{where} is damaged: its checksum disagrees")
        if not data:
            return torch.empty(entry.shape, dtype=dtype)
        return torch.frombuffer(data, dtype=dtype).reshape(entry.shape)


def find_prefix(path: Path) -> Path | None:
    """The prefix of the TensorBundle that a path means, or None.

    path: the prefix (model.ckpt-790000), one of its files, or their folder: then the one that the
    file "checkpoint" calls the latest, or the only one.
    """
    if path.is_dir():
        return _latest(path)
    data = _DATA_FILE.fullmatch(path.name)
    stem = path.with_name(data[1]) if data else path
    candidates = [stem, path.with_suffix("")] if path.suffix in (".index", ".meta") else [stem]
    return next((c for c in candidates if c.name and Path(f"{c}.index").is_file()), None)


def _latest(folder: Path) -> Path | None:
    found = sorted(path.with_suffix("") for path in folder.glob("*.index") if path.is_file())
    if len(found) < 2:
        return found[0] if found else None
    named = None
    if (folder / "checkpoint").is_file():
        with (folder / "checkpoint").open(encoding="utf-8", errors="replace") as file:
            named = re.search(r'^model_checkpoint_path: "(.*)"$', file.read(1 << 16), re.MULTILINE)
    # It may name the machine that trained: only the last part of its path is of use.
    latest = [prefix for prefix in found if named and prefix.name == named[1].rpartition("/")[2]]
    if not latest:
        names = ", ".join(prefix.name for prefix in found)
        raise ValueError(f"{folder} has several checkpoints: give one of {names}")
    return latest[0]


def _header(message: bytes) -> int:
    """The number of data files."""
    shards, version = 1, b""
    for number, value in read_fields(message):
        if number == 1 and isinstance(value, int):
            shards = value
        elif number == 2 and value != 0:
            raise ValueError(f"expected little-endian tensors (0), found byte order {value!r}")
        elif number == 3 and isinstance(value, bytes):
            version = value
    needed = dict(read_fields(version)).get(2, 0)
    if needed not in (0, 1):
        raise ValueError(f"expected version 1 of the format, found one that needs {needed!r}")
    if not 1 <= shards < 100_000:
        raise ValueError(f"expected 1 to 99999 data files, found {shards}")
    return shards


def _entry(message: bytes) -> Entry:
    """BundleEntryProto; a field of another type than it should have is left out."""
    numbers: dict[int, int] = {}
    shape: tuple[int, ...] = ()
    is_sliced = False
    for number, value in read_fields(message):
        if isinstance(value, int):
            numbers[number] = value
        elif number == 2:
            shape = _shape(value)
        elif number == 7:
            is_sliced = True
    dtype, shard, offset, size, checksum = (numbers.get(i, 0) for i in (1, 3, 4, 5, 6))
    return Entry(dtype, shape, shard, offset, size, checksum, is_sliced)


def _shape(message: bytes) -> tuple[int, ...]:
    """TensorShapeProto: field 2 for each dimension, in it field 1 its size."""
    sizes = []
    for number, value in read_fields(message):
        if number == 2 and isinstance(value, bytes):
            size = dict(read_fields(value)).get(1, 0)
            sizes.append(signed(size) if isinstance(size, int) else -1)
    if any(size < 0 for size in sizes) or len(sizes) > 8:
        raise ValueError(f"expected a shape of at most 8 known sizes, found {sizes[:9]}")
    return tuple(sizes)
