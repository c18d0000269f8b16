"""The protocol buffers wire format, as far as a TensorBundle's index needs it.

A message is a sequence of fields: a varint of (number << 3 | type), then a varint (0), 8 bytes (1),
a varint length and so many bytes (2), or 4 bytes (5). Groups (3, 4) are of no use any more.

Source: protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Iterator

_FIXED = {1: 8, 5: 4}


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """(value, the place behind it): 7 bits a byte, the lowest first, below 2^64.

    Raises ValueError if it does not end, or is larger.
    """
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("a number runs past the end")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64:
                raise ValueError("a number has more than 64 bits")
            return value, at
    raise ValueError("a number has more than 64 bits")


def read_fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) in the order of the message; lengths and fixed numbers as they are.

    Raises ValueError for anything that is no message.
    """
    at = 0
    while at < len(message):
        tag, at = read_varint(message, at)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, at = read_varint(message, at)
            yield number, value
            continue
        if kind == 2:
            size, at = read_varint(message, at)
        elif kind in _FIXED:
            size = _FIXED[kind]
        else:
            raise ValueError(f"field {number} has the unknown type {kind}")
        if size > len(message) - at:
            raise ValueError(f"field {number} of {size} bytes runs past the end")
        part = message[at : at + size]
        at += size
        yield number, part if kind == 2 else int.from_bytes(part, "little")


def varint(value: int) -> bytes:
    """A number in [0, 2^64) as `read_varint` reads it."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | bytes) -> bytes:
    """One field of a message: an int as a varint, negative ones as 64 bits; bytes with a length."""
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    return varint(number << 3) + varint(value % (1 << 64))


def fixed32(number: int, value: int) -> bytes:
    """One field of a message: an unsigned number of 4 bytes."""
    return varint(number << 3 | 5) + value.to_bytes(4, "little")


def signed(value: int) -> int:
    """An int64, which the wire holds as its 64 bits."""
    return value - (1 << 64) if value >> 63 else value
