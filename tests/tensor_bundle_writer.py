"""TensorFlow checkpoints with the liberties that tests need: Snappy, small blocks, many data files.

Checksums are computed one byte at a time, beside those of the library.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastddpm.checkpoint.tensor_bundle.protobuf import varint
from fastddpm.checkpoint.tensor_bundle.table import MAGIC, write_block
from fastddpm.checkpoint.tensor_bundle.writer import entry, header

FLOAT, DOUBLE, INT64 = 1, 2, 9
KINDS = {np.dtype(np.float32): FLOAT, np.dtype(np.float64): DOUBLE, np.dtype(np.int64): INT64}


def crc32c(data: bytes) -> int:
    """One byte at a time."""
    remainder = 0xFFFFFFFF
    for byte in data:
        remainder = _TABLE[(remainder ^ byte) & 255] ^ remainder >> 8
    return remainder ^ 0xFFFFFFFF


def _table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _table()


def masked(data: bytes) -> int:
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32


def table(pairs: list[tuple[bytes, bytes]], per_block: int = 40, compress: bool = False) -> bytes:
    """A sorted table; `compress` stores its blocks as Snappy literals and copies."""
    out, index = bytearray(), []
    for start in range(0, len(pairs), per_block):
        some = pairs[start : start + per_block]
        index.append((some[-1][0], _append(out, write_block(some), compress)))
    metaindex = _append(out, write_block([]), False)
    handles = metaindex + _append(out, write_block(index, restart_interval=1), compress)
    return bytes(out) + handles.ljust(40, b"\0") + struct.pack("<Q", MAGIC)


def _append(out: bytearray, contents: bytes, compress: bool) -> bytes:
    """The block with its trailer; returns its handle."""
    stored = snappy(contents) if compress else contents
    handle = varint(len(out)) + varint(len(stored))
    kind = bytes([compress])
    out += stored + kind + struct.pack("<I", masked(stored + kind))
    return handle


def snappy(data: bytes) -> bytes:
    """Snappy by a greedy search: copies of 4 to 64 bytes where there are any."""
    out, at, pending = bytearray(varint(len(data))), 0, bytearray()

    def literal() -> None:
        for start in range(0, len(pending), 60):
            piece = pending[start : start + 60]
            out.append(len(piece) - 1 << 2)
            out.extend(piece)
        pending.clear()

    while at < len(data):
        found = data.rfind(data[at : at + 4], 0, at + 3)
        if found < 0 or at + 4 > len(data) or at - found >= 1 << 16:
            pending.append(data[at])
            at += 1
            continue
        size = 4
        while size < 64 and at + size < len(data) and data[found + size] == data[at + size]:
            size += 1
        literal()
        offset = at - found
        if size < 12 and offset < 2048:
            out += bytes([offset >> 8 << 5 | size - 4 << 2 | 1, offset & 255])
        else:
            out += bytes([size - 1 << 2 | 2]) + struct.pack("<H", offset)
        at += size
    literal()
    return bytes(out)


def write_bundle(
    prefix: Path, tensors: Mapping[str, NDArray[np.generic]], *, shards: int = 1, **how: int
) -> None:
    """PREFIX.index and its data files, and the file "checkpoint" that names them."""
    data = [bytearray() for _ in range(shards)]
    pairs = [(b"", header(shards))]
    for i, name in enumerate(sorted(tensors)):
        value, shard = tensors[name], i % shards
        content = value.tobytes()
        kind = KINDS[value.dtype]
        message = entry(value.shape, len(data[shard]), content, kind, shard)
        pairs.append((name.encode(), message))
        data[shard] += content
    prefix.parent.mkdir(parents=True, exist_ok=True)
    Path(f"{prefix}.index").write_bytes(table(pairs, **how))  # type: ignore[arg-type]
    for shard, content in enumerate(data):
        Path(f"{prefix}.data-{shard:05d}-of-{shards:05d}").write_bytes(content)
    latest = (
        f'model_checkpoint_path: "{prefix.name}"\nall_model_checkpoint_paths: "{prefix.name}"\n'
    )
    (prefix.parent / "checkpoint").write_text(latest)
