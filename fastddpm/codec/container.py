"""A file: its header, the stream of symbols, and a checksum.

    DDP1                                          4 bytes
    the model's and the diffusion's SHA-256       3 and 3 bytes, the first ones of each
    seed, images, C, H, W, steps                  variable-length integers, seven bits a byte
    flags                                         1: the timesteps are listed; 2: "tanh" pixels
    bits of a block                               in halves, one byte
    gaps between the timesteps                    if they are listed
    CRC-32 of the header                          2 bytes, its lower half
    the stream (entropy.py)
    CRC-32 of all before                          4 bytes; not there in a file that was cut off

Every number is bounded before it is used, so that no header makes a reader ask for much memory.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

from fastddpm.codec.damage import DamagedError

MAGIC = b"DDP1"
DIGEST_BYTES = 3
LISTED, TANH = 1, 2
# Limits of a file: images, numbers of all images together, steps.
MOST_IMAGES, MOST_NUMBERS, MOST_STEPS = 1 << 15, 1 << 26, 1 << 16


@dataclass(frozen=True)
class Header:
    """weights, diffusion: DIGEST_BYTES each. shape: (C, H, W). timesteps: positions in the
    diffusion's chain if they are listed, else None: ``steps`` of them, cubically spaced. target:
    bits of a block, a multiple of one half. decoder: "erf" or "tanh", of the pixels."""

    weights: bytes
    diffusion: bytes
    seed: int
    images: int
    shape: tuple[int, int, int]
    steps: int
    timesteps: tuple[int, ...] | None
    target: float
    decoder: str

    def __post_init__(self) -> None:
        """ValueError for a number out of its bounds."""
        _within("images", self.images, 1, MOST_IMAGES)
        _within("numbers in all images", self.images * math.prod(self.shape), 1, MOST_NUMBERS)
        _within("steps", self.steps, 1, MOST_STEPS)
        _within("seed", self.seed, 0, (1 << 64) - 1)
        _within("half bits of a block", round(2 * self.target), 1, 32)

    def pack(self) -> bytes:
        """The bytes, with their check."""
        flags = (self.timesteps is not None) * LISTED + (self.decoder == "tanh") * TANH
        numbers = (self.seed, self.images, *self.shape, self.steps, flags)
        content = MAGIC + self.weights + self.diffusion + b"".join(map(_varint, numbers))
        content += bytes([round(2 * self.target)])
        if self.timesteps is not None:
            before = (-1, *self.timesteps[:-1])
            gaps = (t - s - 1 for t, s in zip(self.timesteps, before, strict=True))
            content += b"".join(map(_varint, gaps))
        return content + _half_sum(content)


def unpack(data: bytes) -> tuple[Header, bytes, bool]:
    """The header, the stream and whether the file is whole.

    Raises DamagedError for anything but a header that ``Header.pack`` made.
    """
    if data[: len(MAGIC)] != MAGIC:
        if MAGIC.startswith(data[: len(MAGIC)]):
            raise DamagedError("the file ends within its header")
        raise DamagedError(f"not a file of this codec: it begins with {data[: len(MAGIC)]!r}")
    reader = _Bytes(data, len(MAGIC))
    weights, diffusion = reader.take(DIGEST_BYTES), reader.take(DIGEST_BYTES)
    seed, images, channels, height, width, steps, flags = (reader.varint() for _ in range(7))
    target = reader.take(1)[0] / 2
    try:
        _within("steps", steps, 1, MOST_STEPS)
        _within("flags", flags, 0, LISTED | TANH)
        timesteps = _timesteps(reader, steps) if flags & LISTED else None
        check = _half_sum(data[: reader.place])
        if reader.take(2) != check:
            raise DamagedError("the header's checksum fails")
        shape = (channels, height, width)
        decoder = "tanh" if flags & TANH else "erf"
        header = Header(weights, diffusion, seed, images, shape, steps, timesteps, target, decoder)
    except DamagedError:
        raise
    except ValueError as error:
        raise DamagedError(f"the header is damaged: {error}") from error
    body = data[reader.place :]
    whole = len(body) >= 4 and zlib.crc32(data[:-4]).to_bytes(4, "big") == data[-4:]
    return header, body[:-4] if whole else body, whole


def sealed(header: bytes, stream: bytes) -> bytes:
    """The file."""
    content = header + stream
    return content + zlib.crc32(content).to_bytes(4, "big")


class _Bytes:
    def __init__(self, data: bytes, place: int) -> None:
        self._data = data
        self.place = place

    def take(self, count: int) -> bytes:
        taken = self._data[self.place : self.place + count]
        if len(taken) < count:
            raise DamagedError("the file ends within its header")
        self.place += count
        return taken

    def varint(self) -> int:
        """At most ten bytes."""
        value = 0
        for shift in range(0, 70, 7):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise DamagedError("the header's numbers are damaged")


def _timesteps(reader: _Bytes, steps: int) -> tuple[int, ...]:
    positions, last = [], -1
    for _ in range(steps):
        last += reader.varint() + 1
        positions.append(last)
    return tuple(positions)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _half_sum(content: bytes) -> bytes:
    return (zlib.crc32(content) & 0xFFFF).to_bytes(2, "big")


def _within(what: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"expected {what} from {low} to {high}, got {value}")
