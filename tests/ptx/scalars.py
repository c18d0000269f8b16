"""PTX's scalar types as numpy arrays, and the exact roundings between them.

Registers hold bits (unsigned integers). Integers and float32, float64 are computed in their numpy
types. f16 and bf16 are widened exactly to float64, computed there and rounded once, which is right
because float64 has more than twice their precision; fused operations first round to odd
(Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008), so that the second
rounding sees every bit that matters.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

UNSIGNED = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
SIGNED = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
FLOATS = {"f16": 16, "bf16": 16, "f32": 32, "f64": 64}
# Two numbers in one register, the first in the low half.
PACKED = {"f16x2": "f16", "bf16x2": "bf16", "f32x2": "f32"}
PACKED_INTEGERS = {"s16x2": "s16", "u16x2": "u16"}
PAIRS = PACKED | PACKED_INTEGERS

TYPES = (
    {f"{kind}{bits}" for kind in "bsu" for bits in UNSIGNED} | set(FLOATS) | set(PAIRS) | {"pred"}
)


def width(kind: str) -> int:
    """Bits of a type; a predicate has one."""
    if kind == "pred":
        return 1
    if kind in PAIRS:
        return 2 * width(PAIRS[kind])
    return FLOATS.get(kind) or int(kind[1:])


def decode(bits: Array, kind: str) -> Array:
    """Register bits as numbers; f16 and bf16 become float64."""
    if kind == "bf16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    if kind == "f16":
        return bits.view(np.float16).astype(np.float64)
    if kind == "f32":
        return bits.view(np.float32)
    if kind == "f64":
        return bits.view(np.float64)
    return bits.view(SIGNED[width(kind)]) if kind.startswith("s") else bits


def encode(values: Array, kind: str) -> Array:
    """Numbers as register bits; f16 and bf16 are rounded to nearest even from float64."""
    if kind == "bf16":
        return _bf16_bits(values)
    if kind == "f16":
        half = values.astype(np.float16).view(np.uint16)
        return np.where(np.isnan(values), np.uint16(0x7FFF), half)
    if kind == "pred":
        return values
    bits: Array = np.ascontiguousarray(values).view(UNSIGNED[width(kind)])
    return bits


def halves(bits: Array, kind: str) -> tuple[Array, Array]:
    """The low and the high number of a packed register, as bits."""
    half = width(kind) // 2
    pair = np.ascontiguousarray(bits).view(UNSIGNED[half]).reshape(-1, 2)
    return pair[:, 0].copy(), pair[:, 1].copy()


def join(low: Array, high: Array, kind: str) -> Array:
    """The packed register of two numbers' bits."""
    return np.stack([low, high], axis=1).view(UNSIGNED[width(kind)])[:, 0]


def _bf16_bits(values: Array) -> Array:
    single = odd_float32(values).view(np.uint32)
    rounded = single + np.uint32(0x7FFF) + ((single >> np.uint32(16)) & np.uint32(1))
    return np.where(np.isnan(values), 0x7FFF, rounded >> np.uint32(16)).astype(np.uint16)


def odd_float32(values: Array) -> Array:
    """float64 to float32 rounded to odd: toward zero, the last bit set if anything was lost."""
    nearest = values.astype(np.float32)
    bits = nearest.view(np.uint32) - (np.abs(nearest) > np.abs(values)).astype(np.uint32)
    inexact = (nearest != values) & ~np.isnan(values)
    return np.where(inexact, bits | np.uint32(1), bits).view(np.float32)


def odd_sum(a: Array, b: Array) -> Array:
    """a + b in float64 rounded to odd; a and b must not overflow."""
    total = a + b
    virtual = total - a
    # Knuth's TwoSum: the error of the sum, exactly.
    error = (a - (total - virtual)) + (b - virtual)
    even = (np.ascontiguousarray(total).view(np.uint64) & np.uint64(1)) == 0
    move = even & np.isfinite(total) & (error != 0)
    return np.where(move, np.nextafter(total, np.where(error > 0, np.inf, -np.inf)), total)


def flush(values: Array) -> Array:
    """float32 with its subnormal numbers made zeros of the same sign (.ftz)."""
    tiny = np.abs(values) < np.finfo(np.float32).smallest_normal
    return np.where(tiny, np.copysign(np.float32(0), values), values)
