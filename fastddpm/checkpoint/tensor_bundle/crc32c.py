"""CRC-32C (Castagnoli), the checksum of TensorFlow's files, over many bytes at once in numpy.

A cyclic redundancy check is linear over GF(2). So the bytes are cut into lanes of equal length,
every lane's remainder is computed in step with the others, and neighbours are joined by

    remainder(A ‖ B) = Z^|B| · remainder(A)  +  remainder(B)

where Z is the 32 × 32 matrix that a zero byte multiplies a remainder with. Zeros before the first
byte change no remainder that starts at 0, so the lanes are filled up in front.

Source: RFC 3720, appendix B.4 (the polynomial); tensorflow/tsl/lib/hash/crc32c.h (the mask).
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]

# x^32 + x^28 + ... + 1, its bits reflected.
POLYNOMIAL = 0x82F63B78
ALL_ONES = 0xFFFFFFFF
# Enough to hide numpy's cost of a call, few enough that a step's words stay in the first cache.
LANES = 4096
_MASK_DELTA = 0xA282EAD8


def crc32c(data: bytes | memoryview) -> int:
    """The checksum of `data`, as RFC 3720 defines it."""
    start = _apply(_zero_bytes(len(data)), np.array(ALL_ONES, np.uint32))
    return int(start) ^ _remainder(data) ^ ALL_ONES


def mask(checksum: int) -> int:
    """The checksum as a file holds it: `unmask` backwards."""
    return ((checksum >> 15 | checksum << 17) + _MASK_DELTA) & ALL_ONES


def unmask(masked: int) -> int:
    """The checksum that a file holds as `masked`, rotated and moved so that it is no CRC itself."""
    rotated = (masked - _MASK_DELTA) & ALL_ONES
    return (rotated >> 17 | rotated << 15) & ALL_ONES


def _remainder(data: bytes | memoryview) -> int:
    """The remainder of `data` from a start of 0."""
    words = -(-len(data) // 4)
    lanes = min(LANES, 1 << max(words.bit_length() - 1, 0))
    steps = -(-words // lanes)
    padded = np.zeros(4 * lanes * steps, np.uint8)
    padded[len(padded) - len(data) :] = np.frombuffer(data, np.uint8)
    # Transposed, so that a step reads one row: [steps, lanes]
    columns = np.ascontiguousarray(padded.view("<u4").reshape(lanes, steps).T)
    low, high = _tables()
    remainders = np.zeros(lanes, np.uint32)
    for column in columns:
        remainders ^= column
        remainders = low[remainders & 0xFFFF] ^ high[remainders >> 16]
    length = 4 * steps
    while len(remainders) > 1:
        remainders = _apply(_zero_bytes(length), remainders[0::2]) ^ remainders[1::2]
        length *= 2
    return int(remainders[0])


@functools.cache
def _tables() -> tuple[Words, Words]:
    """What four zero bytes make of a remainder's low and of its high 16 bits."""
    halves = np.arange(1 << 16, dtype=np.uint32)
    matrix = _zero_bytes(4)
    return _apply(matrix, halves), _apply(matrix, halves << np.uint32(16))


# A network's tensors have few sizes.
@functools.lru_cache(maxsize=1024)
def _zero_bytes(count: int) -> Words:
    """The matrix of `count` zero bytes, uint32 [32]: column i is what becomes of bit i."""
    power = np.array([POLYNOMIAL, *(1 << i for i in range(31))], np.uint32)  # one zero bit
    matrix = np.array([1 << i for i in range(32)], np.uint32)
    bits = 8 * count
    while bits:
        matrix = _apply(power, matrix) if bits & 1 else matrix
        power = _apply(power, power)
        bits >>= 1
    return matrix


def _apply(matrix: Words, remainders: Words) -> Words:
    """matrix · remainder over GF(2) for every remainder; a matrix is 32 of them."""
    bits = remainders[..., None] >> np.arange(32, dtype=np.uint32) & np.uint32(1)
    out: Words = np.bitwise_xor.reduce(bits * matrix, axis=-1)
    return out
