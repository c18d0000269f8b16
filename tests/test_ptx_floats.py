"""The PTX executor's floating-point arithmetic, against exact rational arithmetic."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from ptx.handwritten import LANES, TORCH, apply, random_bits

# Precision and smallest exponent of the last bit.
FORMATS = {"f16": (11, -24), "bf16": (8, -133), "f32": (24, -149)}


LARGEST = {
    "f16": 65504.0,
    "bf16": float.fromhex("0x1.fep127"),
    "f32": float.fromhex("0x1.fffffep127"),
}


def value(bits: int, kind: str) -> float:
    """The number that the bits of a floating-point type stand for."""
    if kind == "f32":
        return struct.unpack("f", struct.pack("I", bits))[0]
    if kind == "bf16":
        return value(bits << 16, "f32")
    return struct.unpack("e", struct.pack("H", bits))[0]


def rounded(exact: Fraction, kind: str) -> float:
    """Nearest number of the type, ties to even; infinity beyond the largest."""
    precision, lowest = FORMATS[kind]
    if exact == 0:
        return 0.0
    exponent = math.frexp(exact.numerator)[1] - math.frexp(exact.denominator)[1] - 1
    exponent += abs(exact) >= Fraction(2) ** (exponent + 1)
    exponent -= abs(exact) < Fraction(2) ** exponent
    unit = Fraction(2) ** max(exponent - precision + 1, lowest)
    result = round(exact / unit) * unit  # round() of a Fraction takes ties to even
    return math.copysign(math.inf, result) if abs(result) > LARGEST[kind] else float(result)


def bits_of(number: float, kind: str) -> int:
    """The bits of a number that the type holds exactly."""
    if kind == "f32":
        return int(np.float32(number).view(np.uint32))
    if kind == "bf16":
        return bits_of(number, "f32") >> 16
    return int(np.float16(number).view(np.uint16))


def numbers(kind: str, seed: int) -> np.ndarray:
    """Bits of finite numbers of a type: half of them of ordinary size, half anything."""
    size = 32 if kind == "f32" else 16
    bits = random_bits(size, seed)
    generator = np.random.default_rng(seed + 1)
    ordinary = torch.from_numpy(generator.standard_normal(LANES))
    dtype = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}[kind]
    near_one = ordinary.to(dtype).view(TORCH[size]).numpy().view(f"uint{size}")
    bits = np.where(np.arange(LANES) % 2, bits, near_one)
    finite = [math.isfinite(value(int(b), kind)) for b in bits]
    return np.where(finite, bits, near_one)


FLOATS: dict[str, Callable[..., Fraction]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "fma": lambda a, b, c: a * b + c,
}


def check_floats(
    bits: np.ndarray, kind: str, function: Callable[..., Fraction], *operands: np.ndarray
) -> None:
    """Every result must be the exact one, rounded once."""
    for result, *given in zip(bits, *operands, strict=True):
        exact = function(*(Fraction(value(int(g), kind)) for g in given))
        assert value(int(result), kind) == rounded(exact, kind), (kind, given)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("opcode", FLOATS)
def test_floating_point_rounds_once(opcode: str, kind: str) -> None:
    size = 32 if kind == "f32" else 16
    operands = [numbers(kind, seed) for seed in range(3 if opcode == "fma" else 2)]
    if opcode == "fma":
        # a b - round(a b): what is left is the product's own error.
        product = [
            rounded(Fraction(value(int(a), kind)) * Fraction(value(int(b), kind)), kind)
            for a, b in zip(*operands[:2], strict=True)
        ]
        cancel = torch.tensor(product, dtype=torch.float64).clamp(-LARGEST[kind], LARGEST[kind])
        dtype = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}[kind]
        opposite = (-cancel).to(dtype).view(TORCH[size]).numpy().view(f"uint{size}")
        operands[2] = np.where(np.arange(LANES) % 3 == 0, opposite, operands[2])
    places = ", ".join(f"{{{i}}}" for i in range(len(operands)))
    bits = apply(f"{opcode}.rn.{kind} {{d}}, {places}", [size] * (1 + len(operands)), *operands)
    check_floats(bits, kind, FLOATS[opcode], *operands)


def test_fma_where_rounding_twice_goes_wrong() -> None:
    # a b lies in the middle of two numbers of the type, and c is too small for the wider type.
    for kind, a, b in (("f32", 4097, 4097), ("bf16", 15, 19), ("f16", 63, 33)):
        size = 32 if kind == "f32" else 16
        given = [
            np.full(LANES, bits_of(x, kind)) for x in (a, b, 2.0 ** (-70 if size == 32 else -24))
        ]
        bits = apply(f"fma.rn.{kind} {{d}}, {{0}}, {{1}}, {{2}}", [size] * 4, *given)
        check_floats(bits, kind, FLOATS["fma"], *given)


@pytest.mark.parametrize("packed", ["f32x2", "f16x2", "bf16x2"])
def test_packed_numbers_are_two_numbers(packed: str) -> None:
    kind = packed[:-2]
    half = 32 if kind == "f32" else 16
    whole = [
        numbers(kind, s).astype(np.uint64) << np.uint64(half) | numbers(kind, s + 9)
        for s in range(3)
    ]
    bits = apply(f"fma.rn.{packed} {{d}}, {{0}}, {{1}}, {{2}}", [2 * half] * 4, *whole)
    for shift in (0, half):
        parts = [
            w.astype(np.uint64) >> np.uint64(shift) & np.uint64((1 << half) - 1)
            for w in (bits, *whole)
        ]
        check_floats(parts[0], kind, FLOATS["fma"], *parts[1:])


def test_division_and_square_root_round_once() -> None:
    a, b = numbers("f32", 0), numbers("f32", 1)
    b = np.where(b << np.uint32(1) == 0, np.uint32(0x3F800000), b)
    check_floats(apply("div.rn.f32 {d}, {0}, {1}", [32] * 3, a, b), "f32", lambda x, y: x / y, a, b)
    positive = a & np.uint32(0x7FFFFFFF)
    for result, x in zip(apply("sqrt.rn.f32 {d}, {0}", [32] * 2, positive), positive, strict=True):
        # Within half a unit: the squares of the neighbouring midpoints enclose x.
        root, exact = Fraction(value(int(result), "f32")), Fraction(value(int(x), "f32"))
        below, above = (
            Fraction(value(int(result) + d, "f32")) if int(result) + d >= 0 else root
            for d in (-1, 1)
        )
        assert ((root + below) / 2) ** 2 <= exact <= ((root + above) / 2) ** 2


def test_flushing_of_subnormal_numbers() -> None:
    small = np.full(LANES, 0x80000001)  # -2^-149
    one = np.full(LANES, 0x3F800000)
    assert (apply("mul.f32 {d}, {0}, {1}", [32] * 3, small, one) == 0x80000001).all()
    assert (apply("mul.ftz.f32 {d}, {0}, {1}", [32] * 3, small, one) == 0x80000000).all()
    half, least = np.full(LANES, 0x3F000000), np.full(LANES, 0x00800000)
    assert (apply("mul.ftz.f32 {d}, {0}, {1}", [32] * 3, half, least) == 0).all()


def test_minimum_and_maximum() -> None:
    nan, one, minus, zero = 0x7FC00000, 0x3F800000, 0x80000000, 0
    a = np.tile([nan, one, minus, zero], LANES // 4)
    b = np.tile([one, nan, zero, minus], LANES // 4)
    low = apply("min.f32 {d}, {0}, {1}", [32] * 3, a, b)[:4]
    high = apply("max.f32 {d}, {0}, {1}", [32] * 3, a, b)[:4]
    assert low.tolist() == [one, one, minus, minus]
    assert high.tolist() == [one, one, zero, zero]
    with_nan = apply("max.NaN.f32 {d}, {0}, {1}", [32] * 3, a, b)[:4].view(np.float32)
    assert np.isnan(with_nan).tolist() == [True, True, False, False]


def test_numbers_become_integers() -> None:
    bits = numbers("f32", 3)
    bits[:8] = np.array([2.5, -2.5, 3.5, 1e10, -1e10, math.nan, -0.5, 0.75], "f4").view("u4")
    rounding: dict[str, Callable[[float], int]] = {
        "rni": round,
        "rzi": math.trunc,
        "rmi": math.floor,
        "rpi": math.ceil,
    }
    for name, function in rounding.items():
        for kind, low, high in (("s32", -(1 << 31), (1 << 31) - 1), ("u32", 0, (1 << 32) - 1)):
            results = apply(f"cvt.{name}.{kind}.f32 {{d}}, {{0}}", [32, 32], bits)
            for result, given in zip(results, bits, strict=True):
                number = value(int(given), "f32")
                expected = 0 if math.isnan(number) else max(low, min(high, function(number)))
                assert int(result) == expected & 0xFFFFFFFF, (name, kind, number)
    whole = apply("cvt.rni.f32.f32 {d}, {0}", [32, 32], bits).view(np.float32)
    assert np.array_equal(whole, np.rint(bits.view(np.float32)), equal_nan=True)


@pytest.mark.parametrize("kind", ["s32", "u32", "s64", "u64"])
def test_integers_become_numbers(kind: str) -> None:
    size = int(kind[1:])
    bits = random_bits(size, 5)
    results = apply(f"cvt.rn.f32.{kind} {{d}}, {{0}}", [32, size], bits)
    for result, given in zip(results, bits, strict=True):
        exact = (
            int(given) if kind[0] == "u" or given < 1 << (size - 1) else int(given) - (1 << size)
        )
        assert value(int(result), "f32") == rounded(Fraction(exact), "f32")


@pytest.mark.parametrize("narrow", ["f16", "bf16"])
def test_numbers_become_narrower_and_wider(narrow: str) -> None:
    wide = numbers("f32", 7)
    # Ties, and numbers beside them.
    wide[:6] = [0x3F808000, 0x3F818000, 0x3F808001, 0x3F801000, 0x3F803000, 0x3F801001]
    results = apply(f"cvt.rn.{narrow}.f32 {{d}}, {{0}}", [16, 32], wide)
    for result, given in zip(results, wide, strict=True):
        assert value(int(result), narrow) == rounded(Fraction(value(int(given), "f32")), narrow)
    back = apply(f"cvt.f32.{narrow} {{d}}, {{0}}", [32, 16], results)
    for result, given in zip(back, results, strict=True):
        assert value(int(result), "f32") == value(int(given), narrow)
    other = numbers("f32", 8)
    both = apply(f"cvt.rn.{narrow}x2.f32 {{d}}, {{0}}, {{1}}", [32, 32, 32], other, wide)
    assert np.array_equal(both & 0xFFFF, results)


def test_not_a_number_stays_one() -> None:
    nan = np.full(LANES, 0x7F800001)
    assert (apply("cvt.rn.bf16.f32 {d}, {0}", [16, 32], nan) == 0x7FFF).all()
    assert (apply("cvt.rn.f16.f32 {d}, {0}", [16, 32], nan) == 0x7FFF).all()


COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b and not math.isnan(a + b),
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "equ": lambda a, b: a == b or math.isnan(a + b),
    "neu": lambda a, b: a != b,
    "ltu": lambda a, b: not a >= b,
    "leu": lambda a, b: not a > b,
    "gtu": lambda a, b: not a <= b,
    "geu": lambda a, b: not a < b,
    "num": lambda a, b: not math.isnan(a + b),
    "nan": lambda a, b: math.isnan(a + b),
}


@pytest.mark.parametrize("name", COMPARISONS)
def test_comparisons(name: str) -> None:
    generator = np.random.default_rng(0)
    a, b = generator.choice(np.array([-1, -0.0, 0.0, 1, 2, math.nan], "f4"), (2, LANES))
    instruction = f"setp.{name}.f32 %p1, {{0}}, {{1}};\n selp.b32 {{d}}, 1, 0, %p1"
    results = apply(instruction, [32] * 3, a.view(np.uint32), b.view(np.uint32))
    assert results.tolist() == [int(COMPARISONS[name](x, y)) for x, y in zip(a, b, strict=True)]


def test_approximate_functions_are_correctly_rounded() -> None:
    bits = np.abs(numbers("f32", 2).view(np.float32)).clip(0.01, 80).view(np.uint32)
    x = bits.view(np.float32).astype(np.float64)
    functions = {
        "ex2": np.exp2,
        "lg2": np.log2,
        "rcp": np.reciprocal,
        "sin": np.sin,
        "cos": np.cos,
        "tanh": np.tanh,
        "rsqrt": lambda v: 1 / np.sqrt(v),
    }
    for name, function in functions.items():
        result = apply(f"{name}.approx.f32 {{d}}, {{0}}", [32, 32], bits).view(np.float32)
        assert np.array_equal(result, function(x).astype(np.float32)), name
