"""Snappy's raw format, decompressed: literals, and copies from what is already there.

    varint      length when decompressed
    elements    tag & 3 = 0: literal; 1, 2, 3: copy with an offset of 11, 16 or 32 bits

Source: github.com/google/snappy, format_description.txt.
"""

from __future__ import annotations

from fastddpm.checkpoint.tensor_bundle.protobuf import read_varint

# A copy of three bytes gives at most 64; no other element gives more for its size.
_MOST_PER_BYTE = 64 / 3


def decompress(data: bytes) -> bytes:
    """The bytes that `data` stands for. Raises ValueError for anything else than Snappy."""
    length, at = read_varint(data, 0)
    if length > _MOST_PER_BYTE * len(data):
        raise ValueError(f"{len(data)} bytes of Snappy cannot hold {length}")
    out = bytearray()
    while at < len(data):
        tag = data[at]
        at += 1
        if tag & 3 == 0:
            size, at = _literal_size(data, tag >> 2, at)
            if size > len(data) - at:
                raise ValueError("a literal runs past the end")
            out += data[at : at + size]
            at += size
        else:
            size, offset, at = _copy(data, tag, at)
            _repeat(out, size, offset)
        if len(out) > length:
            raise ValueError(f"expected {length} bytes, found more")
    if len(out) != length:
        raise ValueError(f"expected {length} bytes, found {len(out)}")
    return bytes(out)


def _literal_size(data: bytes, code: int, at: int) -> tuple[int, int]:
    extra = max(code - 59, 0)
    if not extra:
        return code + 1, at
    return _number(data, at, extra) + 1, at + extra


def _copy(data: bytes, tag: int, at: int) -> tuple[int, int, int]:
    """(size, offset, the place behind it)"""
    if tag & 3 == 1:
        return (tag >> 2 & 7) + 4, tag >> 5 << 8 | _number(data, at, 1), at + 1
    extra = 2 if tag & 3 == 2 else 4
    return (tag >> 2) + 1, _number(data, at, extra), at + extra


def _number(data: bytes, at: int, size: int) -> int:
    if size > len(data) - at:
        raise ValueError("an element runs past the end")
    return int.from_bytes(data[at : at + size], "little")


def _repeat(out: bytearray, size: int, offset: int) -> None:
    if not 0 < offset <= len(out):
        raise ValueError(f"a copy reaches {offset} bytes back of {len(out)}")
    source = out[len(out) - offset :]
    # A copy may overlap what it writes: then it repeats.
    out += (source * (size // offset + 1))[:size]
