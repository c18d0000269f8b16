"""Integer, logical and bit-field instructions as functions of two's-complement numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .floats import arithmetic as float_arithmetic
from .floats import divide as float_divide
from .form import Form
from .operation import Operation, build
from .scalars import FLOATS, PACKED, PACKED_INTEGERS, SIGNED, UNSIGNED, Array, width

Function = Callable[..., Array]


def quotient(a: Array, b: Array) -> Array:
    """a / b toward zero; a division by zero gives all ones, as on the machine."""
    safe = np.where(b == 0, b.dtype.type(1), b)
    floor = a // safe
    toward_zero = floor + ((a % safe != 0) & ((a < 0) != (safe < 0))).astype(a.dtype)
    return np.where(b == 0, np.zeros_like(b) - b.dtype.type(1), toward_zero)


def remainder(a: Array, b: Array) -> Array:
    """What quotient leaves, with the sign of a."""
    return a - quotient(a, b) * b


ARITHMETIC: dict[str, Function] = {
    "add": np.add,
    "sub": np.subtract,
    "min": np.minimum,
    "max": np.maximum,
    "neg": np.negative,
    "abs": np.abs,
    "rem": remainder,
    "div": quotient,
}
LOGICAL: dict[str, Function] = {
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.invert,
}


def arithmetic(form: Form) -> Operation:
    """add, sub, div, rem, min, max, neg, abs of integers or floating-point numbers."""
    opcode = form.instruction.opcode
    if form.left[-1:] and form.left[-1] in {*FLOATS, *PACKED}:
        return float_divide(form) if opcode == "div" else float_arithmetic(form)
    pairs = PACKED_INTEGERS if opcode in ("add", "min", "max") else ()
    kind = form.kind(*_integers(16, 32, 64), *pairs)
    sources = [kind] if opcode in ("neg", "abs") else [kind, kind]
    return build(form, kind, sources, ARITHMETIC[opcode])


def multiply(form: Form) -> Operation:
    """mul.lo, mul.hi, mul.wide of integers; mul of floating-point numbers."""
    if form.left[-1:] and form.left[-1] in {*FLOATS, *PACKED}:
        return float_arithmetic(form)
    kind, result, function = _product(form)
    return build(form, result, [kind, kind], function)


def multiply_add(form: Form) -> Operation:
    """mad.lo, mad.hi, mad.wide: a b + c."""
    kind, result, function = _product(form)
    return build(form, result, [kind, kind, result], lambda a, b, c: function(a, b) + c)


def _product(form: Form) -> tuple[str, str, Function]:
    kind = form.kind(*_integers(16, 32, 64))
    part = form.one_of("lo", "hi", "wide")
    if part == "lo":
        return kind, kind, np.multiply
    if part == "hi":
        return kind, kind, high_product
    wide = f"{kind[0]}{2 * width(kind)}"
    number = (SIGNED if kind[0] == "s" else UNSIGNED).get(width(wide))
    if number is None:
        raise form.unsupported("a product of 128 bits")
    return kind, wide, lambda a, b: a.astype(number) * b.astype(number)


def high_product(a: Array, b: Array) -> Array:
    """The upper half of the double-width product."""
    bits = a.dtype.itemsize * 8
    if bits < 64:
        wide = np.int64 if a.dtype.kind == "i" else np.uint64
        return ((a.astype(wide) * b.astype(wide)) >> wide(bits)).astype(a.dtype)
    # 64 bits: Python's integers are exact.
    product = (a.astype(object) * b.astype(object)) >> 64
    return product.astype(a.dtype)


def logical(form: Form) -> Operation:
    """and, or, xor, not of bits or predicates."""
    opcode = form.instruction.opcode
    kind = form.kind("b16", "b32", "b64", "pred")
    return build(form, kind, [kind] * (1 if opcode == "not" else 2), LOGICAL[opcode])


def shift(form: Form) -> Operation:
    """shl and shr: amounts beyond the width shift everything out (shr.s keeps the sign)."""
    left = form.instruction.opcode == "shl"
    kind = form.kind(*(_bits(16, 32, 64) if left else [*_bits(16, 32, 64), *_integers(16, 32, 64)]))
    bits = width(kind)

    def shifted(value: Array, amount: Array) -> Array:
        within = np.minimum(amount, bits - 1).astype(value.dtype)
        result = value << within if left else value >> within
        return result if kind[0] == "s" else np.where(amount < bits, result, value.dtype.type(0))

    return build(form, kind, [kind, "u32"], shifted)


def funnel_shift(form: Form) -> Operation:
    """shf.l / shf.r of the 64 bits (b:a), the amount clamped at 32 or taken modulo 32."""
    form.kind("b32")
    wrap = form.one_of("wrap", "clamp") == "wrap"
    left = form.one_of("l", "r") == "l"

    def shifted(a: Array, b: Array, amount: Array) -> Array:
        n = (amount & np.uint32(31) if wrap else np.minimum(amount, 32)).astype(np.uint64)
        both = (b.astype(np.uint64) << np.uint64(32)) | a.astype(np.uint64)
        moved = (both << n) >> np.uint64(32) if left else both >> n
        return moved.astype(np.uint32)

    return build(form, "b32", ["b32", "b32", "u32"], shifted)


def extract(form: Form) -> Operation:
    """bfe: ``length`` bits from ``position``; .s extends the field's sign."""
    kind = form.kind(*_integers(32, 64))
    bits = width(kind)

    def field(value: Array, position: Array, length: Array) -> Array:
        start, count = position & np.uint32(0xFF), length & np.uint32(0xFF)
        down = value >> np.minimum(start, bits - 1).astype(value.dtype)
        if kind[0] == "u":
            down = np.where(start < bits, down, value.dtype.type(0))
        # Up to the top and down again: >> extends the sign of signed numbers.
        up = (bits - np.clip(count, 1, bits)).astype(value.dtype)
        return np.where(count == 0, value.dtype.type(0), (down << up) >> up)

    return build(form, kind, [kind, "u32", "u32"], field)


def insert(form: Form) -> Operation:
    """bfi: the low ``length`` bits of a into b at ``position``."""
    kind = form.kind("b32", "b64")
    bits = width(kind)

    def inserted(a: Array, b: Array, position: Array, length: Array) -> Array:
        start, count = position & np.uint32(0xFF), length & np.uint32(0xFF)
        every = ~a.dtype.type(0)
        ones = every >> (bits - np.clip(count, 1, bits)).astype(a.dtype)
        ones = np.where((count > 0) & (start < bits), ones, a.dtype.type(0))
        at = np.minimum(start, bits - 1).astype(a.dtype)
        return (b & ~(ones << at)) | ((a & ones) << at)

    return build(form, kind, [kind, kind, "u32", "u32"], inserted)


def permute(form: Form) -> Operation:
    """prmt: four bytes picked out of the eight of (b:a), each by a nibble of the selector."""
    form.kind("b32")

    def picked(a: Array, b: Array, selector: Array) -> Array:
        both = (b.astype(np.uint64) << np.uint64(32)) | a.astype(np.uint64)
        result = np.zeros_like(a)
        for i in range(4):
            nibble = (selector >> np.uint32(4 * i)) & np.uint32(15)
            byte = (both >> ((nibble & np.uint32(7)) * np.uint32(8)).astype(np.uint64)) & 0xFF
            # The nibble's top bit replicates the byte's sign.
            sign = np.where(byte & np.uint64(0x80), np.uint64(0xFF), np.uint64(0))
            byte = np.where(nibble & np.uint32(8), sign, byte)
            result |= byte.astype(np.uint32) << np.uint32(8 * i)
        return result

    return build(form, "b32", ["b32", "b32", "b32"], picked)


def three_inputs(form: Form) -> Operation:
    """lop3: any function of three bits, given by its truth table in the last operand."""
    form.kind("b32")

    def combined(a: Array, b: Array, c: Array, table: Array) -> Array:
        result = np.zeros_like(a)
        for row in range(8):
            chosen = [v if row >> i & 1 else ~v for v, i in ((a, 2), (b, 1), (c, 0))]
            on = (table >> np.uint32(row)) & np.uint32(1)
            result |= chosen[0] & chosen[1] & chosen[2] & (np.uint32(0) - on)
        return result

    return build(form, "b32", ["b32", "b32", "b32", "u32"], combined)


def count_bits(form: Form) -> Operation:
    """popc, and clz: leading zeros."""
    kind = form.kind("b32", "b64")
    leading = form.instruction.opcode == "clz"

    def counted(value: Array) -> Array:
        if leading:
            # Smear the top bit downwards: what stays zero are the leading zeros.
            for i in range(6):
                amount = value.dtype.type(1 << i)
                value = value | (value >> amount) if (1 << i) < width(kind) else value
            value = ~value
        return np.bitwise_count(value).astype(np.uint32)

    return build(form, "u32", [kind], counted)


def _integers(*bits: int) -> list[str]:
    return [f"{kind}{n}" for kind in "su" for n in bits]


def _bits(*bits: int) -> list[str]:
    return [f"b{n}" for n in bits]
