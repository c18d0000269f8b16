"""TensorFlow checkpoints whose index claims more than there is."""

from __future__ import annotations

import struct
from pathlib import Path

from hostile_cases import add, case
from tensor_bundle_writer import masked, table

from fastddpm.checkpoint.tensor_bundle.protobuf import varint
from fastddpm.checkpoint.tensor_bundle.table import write_block
from fastddpm.checkpoint.tensor_bundle.writer import entry, header


def _index(folder: Path, content: bytes, data: bytes = bytes(64)) -> Path:
    (folder / "model.ckpt-1.index").write_bytes(content)
    (folder / "model.ckpt-1.data-00000-of-00001").write_bytes(data)
    return folder


def _one(message: bytes) -> bytes:
    name = b"model/temb/dense0/W"
    return table([(b"", header()), (name, message), (name + b"/ExponentialMovingAverage", message)])


@case("a TensorFlow index of 1 TB")
def _large_index(folder: Path) -> Path:
    _index(folder, b"")
    with (folder / "model.ckpt-1.index").open("r+b") as file:
        file.truncate(10**12)
    return folder


@case("a Snappy block of 4 GB in 7 bytes")
def _snappy_bomb(folder: Path) -> Path:
    return _index(folder, _with_block(b"\xff\xff\xff\xff\x0f\x00a"))


@case("a Snappy block of nothing but copies")
def _snappy_copies(folder: Path) -> Path:
    copies = b"\x00a" + b"\xfe\x01\x00" * 500_000
    return _index(folder, _with_block(varint(1 + 64 * 500_000) + copies))


@case("keys that share a long prefix")
def _prefixes(folder: Path) -> Path:
    entries, key = bytearray(varint(0) + varint(1000) + varint(0) + b"a" * 1000), 1000
    for i in range(0x616162, 0x616162 + 300_000):
        entries += varint(key - 3) + varint(3) + varint(0) + i.to_bytes(3, "big")
    return _index(folder, _with_block(b"", bytes(entries)))


@case("a block of restart points that is read 2000 times")
def _repeated(folder: Path) -> Path:
    return _index(folder, _with_block(b"", restarts=2**17, times=2000))


def _with_block(compressed: bytes, plain: bytes = b"", restarts: int = 1, times: int = 1) -> bytes:
    """A table whose one data block is given, compressed or plain; its index has it `times`."""
    plain += bytes(4 * restarts) + struct.pack("<I", restarts)
    stored = compressed + b"\1" if compressed else plain + b"\0"
    out = bytearray(stored + struct.pack("<I", masked(stored)))
    handle = varint(0) + varint(len(stored) - 1)
    parts = []
    for contents in (write_block([]), write_block([(b"z", handle)] * times)):
        parts.append(varint(len(out)) + varint(len(contents)))
        out += contents + b"\0" + struct.pack("<I", masked(contents + b"\0"))
    return bytes(out) + b"".join(parts).ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


for what, message in {
    "at an offset of 2^62": entry((16,), 2**62, bytes(64)),
    "of 2^62 numbers": entry((2**31, 2**31), 0, bytes(64)),
    "of 2^64 bytes": entry((16,), 0, bytes(64)).replace(b"\x28\x40", b"\x28" + varint(2**64 - 1)),
    "in data file 2^31": entry((16,), 0, bytes(64), shard=2**31),
    "of strings": entry((16,), 0, bytes(64), dtype=7),
}.items():
    add(
        f"a TensorFlow tensor {what}",
        lambda folder, message=message: _index(folder, _one(message)),
    )
