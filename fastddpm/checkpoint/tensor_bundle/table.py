"""A sorted table of keys and values in one file: LevelDB's format, which TensorFlow's index has.

    blocks      entries whose keys share a prefix with the one before, then restart points
    trailers    behind each block: 0 stored or 1 Snappy, and the masked CRC-32C of block and type
    footer      48 bytes: handles of the metaindex and of the index block, zeros, a magic number

The index block's values are the handles (offset, size) of the data blocks, in order.

Source: LevelDB's doc/table_format.md and table/block.cc.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import takewhile

from fastddpm.checkpoint.tensor_bundle.crc32c import crc32c, mask, unmask
from fastddpm.checkpoint.tensor_bundle.protobuf import read_varint, varint
from fastddpm.checkpoint.tensor_bundle.snappy import decompress

MAGIC = 0xDB4775248B80FB57
FOOTER, TRAILER = 48, 5
# Keys share prefixes, so a small file could stand for a huge table. Ho's networks have some 2,400
# keys (weights, averages, Adam's moments) of at most 80 bytes.
MAX_KEY, MAX_KEYS = 1024, 100_000
# As TensorFlow writes: bytes of a block before the next begins, keys between restart points.
BLOCK_SIZE, RESTART_INTERVAL = 1 << 18, 16

Pair = tuple[bytes, bytes]


def read_table(data: bytes) -> Iterator[Pair]:
    """The (key, value) pairs of a table, in the order of their keys.

    Raises ValueError for bytes that are no such table, or damaged.
    """
    if len(data) < FOOTER:
        raise ValueError(f"expected a table of at least {FOOTER} bytes, found {len(data)}")
    footer = data[-FOOTER:]
    magic = int.from_bytes(footer[-8:], "little")
    if magic != MAGIC:
        raise ValueError(f"expected a table, which ends in {MAGIC:#x}, found {magic:#x}")
    metaindex, at = _handle(footer, 0)
    index, _ = _handle(footer, at)
    # TensorFlow leaves it empty: it is only verified.
    _block(data, metaindex)
    previous: bytes | None = None
    for count, (key, value) in enumerate(_all_entries(data, index)):
        if previous is not None and key <= previous:
            raise ValueError(f"key {key!r} stands behind {previous!r}")
        if count == MAX_KEYS:
            raise ValueError(f"expected at most {MAX_KEYS} keys, found more")
        previous = key
        yield key, value


def _all_entries(data: bytes, index: tuple[int, int]) -> Iterator[Pair]:
    """The pairs of the data blocks, which lie one behind the other: none is read twice."""
    end = 0
    for _, value in _entries(_block(data, index)):
        (offset, size), _ = _handle(value, 0)
        if offset < end:
            raise ValueError(f"the block at {offset} begins before {end}, where the last one ends")
        end = offset + size + TRAILER
        yield from _entries(_block(data, (offset, size)))


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    """((offset, size) of a block, the place behind it)"""
    offset, at = read_varint(data, at)
    size, at = read_varint(data, at)
    return (offset, size), at


def _block(data: bytes, handle: tuple[int, int]) -> bytes:
    """The contents of a block, decompressed, its checksum verified."""
    offset, size = handle
    if offset + size + TRAILER > len(data) - FOOTER:
        raise ValueError(f"a block of {size} bytes at {offset} runs past the end")
    end = offset + size
    expected = unmask(int.from_bytes(data[end + 1 : end + TRAILER], "little"))
    if crc32c(data[offset : end + 1]) != expected:
        raise ValueError(f"the block at {offset} is damaged: its checksum disagrees")
    kind = data[end]
    if kind > 1:
        raise ValueError(f"the block at {offset} has the unknown compression {kind}")
    block = data[offset:end]
    return decompress(block) if kind else block


def _entries(block: bytes) -> Iterator[Pair]:
    """A block's pairs: varints of shared, own and value bytes; the key's own part; the value."""
    restarts = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 * (restarts + 1)
    if end < 0:
        raise ValueError(f"a block of {len(block)} bytes cannot have {restarts} restart points")
    at, key = 0, b""
    while at < end:
        shared, at = read_varint(block, at)
        own, at = read_varint(block, at)
        size, at = read_varint(block, at)
        if shared > len(key) or own + size > end - at or shared + own > MAX_KEY:
            raise ValueError(
                f"a key of {shared} + {own} bytes with a value of {size} does not fit its block"
            )
        key = key[:shared] + block[at : at + own]
        at += own
        yield key, block[at : at + size]
        at += size


# ---- written


def write_table(pairs: Iterable[Pair], block_size: int = BLOCK_SIZE) -> bytes:
    """The table of these pairs, whose keys must rise; blocks are stored as they are."""
    out, index = bytearray(), []
    for some in _cut(pairs, block_size):
        index.append((some[-1][0], _append(out, write_block(some))))
    if index:
        # As TensorFlow has it: the last key need not be the table's.
        index[-1] = (_successor(index[-1][0]), index[-1][1])
    handles = _append(out, write_block([])) + _append(out, write_block(index, restart_interval=1))
    return bytes(out) + handles.ljust(FOOTER - 8, b"\0") + MAGIC.to_bytes(8, "little")


def write_block(pairs: Iterable[Pair], restart_interval: int = RESTART_INTERVAL) -> bytes:
    """Entries that share the beginning of their key with the one before, and restart points."""
    out, restarts, last = bytearray(), [0], b""
    for i, (key, value) in enumerate(pairs):
        shared = 0
        if i % restart_interval:
            shared = _shared(last, key)
        elif i:
            restarts.append(len(out))
        out += varint(shared) + varint(len(key) - shared) + varint(len(value))
        out += key[shared:] + value
        last = key
    return bytes(out) + b"".join(n.to_bytes(4, "little") for n in (*restarts, len(restarts)))


def _shared(first: bytes, second: bytes) -> int:
    """How many bytes both begin with."""
    pairs = zip(first, second, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _cut(pairs: Iterable[Pair], block_size: int) -> Iterator[list[Pair]]:
    some: list[Pair] = []
    size = 0
    for key, value in pairs:
        some.append((key, value))
        size += len(key) + len(value)
        if size >= block_size:
            yield some
            some, size = [], 0
    if some:
        yield some


def _successor(key: bytes) -> bytes:
    """The shortest bytes that stand behind `key` or are it."""
    for i, byte in enumerate(key):
        if byte < 0xFF:
            return key[:i] + bytes([byte + 1])
    return key


def _append(out: bytearray, block: bytes) -> bytes:
    """Add a block with its trailer; its handle."""
    handle = varint(len(out)) + varint(len(block))
    stored = block + b"\0"
    out += stored + mask(crc32c(stored)).to_bytes(4, "little")
    return handle
