"""Philox4x32-10 and Box-Muller for Triton kernels: the twin of fastddpm/noise.py, bit for bit.

The constants and the order of operations are the specification's, which tells their origin. A
kernel that calls these is launched with ``exact=True``: a fused multiply-add changes the last bit.
"""

from __future__ import annotations

import triton
import triton.language as tl

PHILOX_MULTIPLIER_0 = tl.constexpr(0xD2511F53)
PHILOX_MULTIPLIER_1 = tl.constexpr(0xCD9E8D57)
PHILOX_KEY_INCREMENT_0 = tl.constexpr(0x9E3779B9)
PHILOX_KEY_INCREMENT_1 = tl.constexpr(0xBB67AE85)
STEP_MASK = tl.constexpr((1 << 24) - 1)

LOG = tl.constexpr(
    (
        -2.0,
        0.9999998211860657,
        -0.6666789054870605,
        0.5000355243682861,
        -0.3992447853088379,
        0.33140626549720764,
        -0.29832708835601807,
        0.28615444898605347,
        -0.17477595806121826,
    )
)
MINUS_TWO_LN_2 = tl.constexpr(-1.3862943649291992)
SQRT_HALF_BITS = tl.constexpr(0x3F3504F3)
# What 2^32 adds to a number's bits, and where the exponent stands in them.
WORD_BITS = tl.constexpr(32 << 23)
EXPONENT_MASK = tl.constexpr(-1 << 23)
# The 24 bits below the top two.
ANGLE_MASK = tl.constexpr(0xFFFFFF << 6)
SIN = tl.constexpr(
    (1.5707963705062866, -0.6459649801254272, 0.07969201356172562, -0.0046287840232253075)
)
COS = tl.constexpr(
    (
        1.0,
        -1.2337005138397217,
        0.25366851687431335,
        -0.0208552535623312,
        0.0008935725199989974,
    )
)


@triton.jit
def stream(seed, index, step, PURPOSE: tl.constexpr):
    """The key and words 1 to 3 of the counter, uint32, from int64 scalars."""
    c1 = (step & STEP_MASK).to(tl.uint32) | (PURPOSE << 24)
    key = (seed.to(tl.uint32), (seed >> 32).to(tl.uint32))
    return key, (c1, index.to(tl.uint32), (index >> 32).to(tl.uint32))


@triton.jit
def normals(c0, key, counter):
    """The normals of elements 4 c0 to 4 c0 + 3, four float32 tensors like c0 (uint32)."""
    w0, w1, w2, w3 = philox4x32(c0, key, counter)
    z0, z1 = box_muller(w0, w1)
    z2, z3 = box_muller(w2, w3)
    return z0, z1, z2, z3


@triton.jit
def philox4x32(c0, key, counter):
    """Ten rounds; words 1 to 3 and the key are scalars and broadcast."""
    k0, k1 = key
    c1, c2, c3 = counter
    for _ in tl.static_range(10):
        # One 32 x 32 -> 64 bit product gives both of its words.
        product_0 = c0.to(tl.uint64) * PHILOX_MULTIPLIER_0
        product_1 = c2.to(tl.uint64) * PHILOX_MULTIPLIER_1
        c0 = (product_1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (product_0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = product_1.to(tl.uint32)
        c3 = product_0.to(tl.uint32)
        k0 += PHILOX_KEY_INCREMENT_0
        k1 += PHILOX_KEY_INCREMENT_1
    return c0, c1, c2, c3


@triton.jit
def box_muller(radius_word, angle_word):
    """Two independent normals from two words."""
    radius = tl.sqrt_rn(minus_two_ln(radius_word))
    cosine, sine = cos_sin(angle_word)
    return radius * cosine, radius * sine


@triton.jit
def minus_two_ln(word):
    """-2 ln u = e (-2 ln 2) - 2 ln(1 + f), where u = 2^e (1 + f), 1 + f in [sqrt(.5), sqrt(2)).

    u = float32(word) 2^-32 + 2^-33 in [2^-33, 1] is made as 2^32 u, and e kept as 2^23 e: powers of
    two change no rounding.
    """
    bits = (word.to(tl.float32) + 0.5).to(tl.int32, bitcast=True) - WORD_BITS
    exponent = (bits - SQRT_HALF_BITS) & EXPONENT_MASK
    f = (bits - exponent).to(tl.float32, bitcast=True) - 1.0
    return exponent.to(tl.float32) * (MINUS_TWO_LN_2 * 2.0**-23) + f * polynomial(f, LOG, 9)


@triton.jit
def cos_sin(word):
    """(cos, sin)(pi/2 (q + s)): q = the top two bits, s = the next 24 bits 2^-24 - 1/2."""
    fraction = (word & ANGLE_MASK).to(tl.int32) - (1 << 29)  # 2^30 s
    s = fraction.to(tl.float32) * 9.313225746154785e-10
    square = s * s
    cosine = polynomial(square, COS, 5)
    sine = s * polynomial(square, SIN, 4)
    swap = (word & 0x40000000) != 0
    # (c, s), (-s, c), (-c, -s), (s, -c) for q = 0, 1, 2, 3: the signs are the top bits of q + 1, q.
    x = flip_sign(tl.where(swap, sine, cosine), word + 0x40000000)
    y = flip_sign(tl.where(swap, cosine, sine), word)
    return x, y


@triton.jit
def flip_sign(x, word):
    """-x where the top bit of word is set, x elsewhere; Triton's own -x turns 0 into +0."""
    bits = x.to(tl.uint32, bitcast=True) ^ (word & 0x80000000)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def polynomial(x, COEFFICIENTS: tl.constexpr, COUNT: tl.constexpr):
    """Horner's rule from the highest power down, product and sum rounded apart."""
    value = x * COEFFICIENTS[COUNT - 1] + COEFFICIENTS[COUNT - 2]
    for k in tl.static_range(3, COUNT + 1):
        value = value * x + COEFFICIENTS[COUNT - k]
    return value
