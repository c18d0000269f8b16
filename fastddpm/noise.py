"""Counter-based normal noise: the specification, in plain torch integer and float32 operations.

    word_0..3 = Philox4x32-10(counter, key)                 Salmon et al. 2011, "Random numbers:
                                                            as easy as 1, 2, 3", SC'11
    z = sqrt(-2 ln u) * (cos, sin)(pi/2 * (q + s))          Box and Muller 1958

    key      k0, k1 = low and high word of the 64-bit seed
    counter  c0 = element // 4      element = linear index in the sample's own [C, H, W] order
             c1 = step | purpose << 24
             c2, c3 = low and high word of the sample index

Nothing but these numbers enters, so a sample's noise does not depend on the batch it is drawn in,
on its place there, on the device or on the number of workers. Words 0 and 1 give the normals of
elements 4*c0 and 4*c0 + 1 (cosine, sine), words 2 and 3 the next two.

**One result everywhere.** The C++ and Triton twins repeat these operations in this order and agree
bit for bit. Every float32 product, sum and square root is rounded by itself, to nearest even; a
fused multiply-add would change the last bit, so none is used (hence no `addcmul` here,
`-ffp-contract=off` in C++ and `enable_fp_fusion=False` in Triton). A word becomes a float32 in one
conversion that rounds to nearest even.

**Accuracy.** The polynomials are minimax fits (linear programming over Chebyshev nodes, each
coefficient rounded to float32 in turn, the rest refitted). Against float64: -2 ln u is within
2e-7 relative, cosine and sine within 1e-7 absolute, a normal within 1e-6 absolute. The uniform u
lies in [2^-33, 1], never 0, so |z| <= sqrt(66 ln 2) = 6.77; a true normal passes that with
probability 1.3e-11.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum

import torch
from torch import Tensor

WORD = 0xFFFFFFFF
STEP_BITS = 24

PHILOX_ROUNDS = 10
PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
PHILOX_KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)

# -2 ln(1 + f) = f * LOG(f) for 1 + f in [sqrt(1/2), sqrt(2)); lowest power first.
LOG = (
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
MINUS_TWO_LN_2 = -1.3862943649291992
SQRT_HALF_BITS = 0x3F3504F3
# sin(pi/2 s) = s * SIN(s^2) and cos(pi/2 s) = COS(s^2) for s in [-1/2, 1/2).
SIN = (1.5707963705062866, -0.6459649801254272, 0.07969201356172562, -0.0046287840232253075)
COS = (
    1.0,
    -1.2337005138397217,
    0.25366851687431335,
    -0.0208552535623312,
    0.0008935725199989974,
)


class Purpose(IntEnum):
    """What a draw is for; it keeps the streams of one sample apart (8 bits, others reserved)."""

    INITIAL = 0
    REVERSE = 1
    FORWARD = 2
    TIMESTEP = 3
    INTERPOLATION = 4
    CODING = 5


def philox4x32(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int | Tensor, int | Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten rounds of Philox4x32 on counters held as int64 tensors of values in [0, 2^32).

    Args:
        counter: four int64 tensors, shapes that broadcast together.
        key: two words, each in [0, 2^32): numbers, or int64 tensors that broadcast too.

    Returns:
        Four int64 tensors of the broadcast shape, values in [0, 2^32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(PHILOX_ROUNDS):
        # A product reaches 2^64 and wraps in int64; shift and mask still give both of its words.
        product_0 = c0 * PHILOX_MULTIPLIERS[0]
        product_1 = c2 * PHILOX_MULTIPLIERS[1]
        c0, c2 = ((product_1 >> 32) & WORD) ^ c1 ^ k0, ((product_0 >> 32) & WORD) ^ c3 ^ k1
        c1, c3 = product_1 & WORD, product_0 & WORD
        k0 = (k0 + PHILOX_KEY_INCREMENTS[0]) & WORD
        k1 = (k1 + PHILOX_KEY_INCREMENTS[1]) & WORD
    return c0, c1, c2, c3


def seed_tensor(seed: int, device: torch.device | str | None = None) -> Tensor:
    """A seed where a kernel reads it: int64 [1], the two's complement of its 64 bits.

    Args:
        seed: in [0, 2^64).
        device: by default the CPU.

    Raises:
        ValueError: a seed out of its range, or none.
    """
    _check_seed(seed)
    signed = seed - (1 << 64) if seed >> 63 else seed
    return torch.tensor([signed], dtype=torch.int64, device=device or "cpu")


def normal(
    seed: int | Tensor,
    indices: Tensor,
    step: int | Tensor,
    shape: Sequence[int],
    purpose: Purpose | int,
    device: torch.device | str | None = None,
) -> Tensor:
    """Standard normal noise of the samples `indices` at one timestep.

    Args:
        seed: in [0, 2^64), or an int64 tensor [1] as `seed_tensor` makes it.
        indices: int64 [B], the sample indices.
        step: the original timestep index in [0, 2^24) (0 for `Purpose.INITIAL`): a number, or an
            int64 tensor [1] or [B]. A tensor's values are not checked, since that would wait for
            the device; their low 24 bits count.
        shape: shape of one sample, for instance (C, H, W); at most 2^34 elements.
        purpose: the stream to draw from.
        device: where to draw; by default the device of `indices`.

    Returns:
        float32 [B, *shape], contiguous.

    Raises:
        ValueError: an argument out of its range or of another shape or dtype.
    """
    check_draw(seed, indices, step, purpose)
    elements = math.prod(check_shape(shape))
    indices = indices.to(device or indices.device)
    words = _words(seed, indices, step, purpose, -(-elements // 4))
    z = torch.stack((*_box_muller(words[0], words[1]), *_box_muller(words[2], words[3])), dim=-1)
    return z.flatten(1)[:, :elements].reshape(len(indices), *shape).contiguous()


def timesteps_draw(
    seed: int | Tensor, indices: Tensor, step: int | Tensor, num_timesteps: int
) -> Tensor:
    """One training timestep for each sample, uniform on {0, ..., num_timesteps - 1}.

    t = floor(word_0 * num_timesteps / 2^32) with purpose TIMESTEP: each t has probability
    1/num_timesteps to within 2^-32.

    Args:
        seed: as in `normal`.
        indices: int64 [B], the sample indices.
        step: in [0, 2^24), tells repeated draws for one sample apart; as in `normal`.
        num_timesteps: T, in [1, 2^24].

    Returns:
        int64 [B].

    Raises:
        ValueError: an argument out of its range or of another shape or dtype.
    """
    check_draw(seed, indices, step, Purpose.TIMESTEP)
    if not 1 <= num_timesteps <= 1 << STEP_BITS:
        raise ValueError(f"num_timesteps: expected 1 to {1 << STEP_BITS}, got {num_timesteps}")
    word = _words(seed, indices, step, Purpose.TIMESTEP, 1)[0]
    return (word[:, 0] * num_timesteps) >> 32


def check_draw(
    seed: int | Tensor, indices: Tensor, step: int | Tensor, purpose: Purpose | int
) -> None:
    """Raise ValueError unless the arguments of `normal` are as its docstring says."""
    if not isinstance(seed, Tensor):
        _check_seed(seed)
    elif seed.dtype != torch.int64 or tuple(seed.shape) != (1,):
        raise ValueError(f"seed: expected int64 [1], got {seed.dtype} {list(seed.shape)}")
    if indices.dtype != torch.int64 or indices.ndim != 1:
        raise ValueError(f"indices: expected int64 [B], got {indices.dtype} {list(indices.shape)}")
    if not 0 <= purpose < 1 << 8:
        raise ValueError(f"purpose: expected 0 to 255, got {int(purpose)}")
    if isinstance(step, Tensor):
        if step.dtype != torch.int64 or step.shape not in ((1,), indices.shape):
            raise ValueError(
                f"step: expected int64 [1] or [{len(indices)}], got {step.dtype} {list(step.shape)}"
            )
    elif not isinstance(step, int):
        raise ValueError(f"step: expected an integer, got {step!r}")
    elif not 0 <= step < 1 << STEP_BITS:
        raise ValueError(f"step: expected 0 to {(1 << STEP_BITS) - 1}, got {step}")


def check_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """The sample shape as a tuple; ValueError if it is negative or beyond the counter's range."""
    sizes = tuple(shape)
    if any(size < 0 for size in sizes) or math.prod(sizes) > 1 << 34:
        raise ValueError(f"shape: expected sizes >= 0, at most 2^34 elements, got {sizes}")
    return sizes


def _check_seed(seed: object) -> None:
    if not isinstance(seed, int):
        raise ValueError(f"seed: expected an integer, got {seed!r}")
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"seed: expected 0 to 2^64 - 1, got {seed}")


def _words(
    seed: int | Tensor, indices: Tensor, step: int | Tensor, purpose: Purpose | int, counters: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four random words of every counter of every sample, each int64 [B, counters]."""
    c0 = torch.arange(counters, dtype=torch.int64, device=indices.device)[None, :]
    steps = torch.as_tensor(step, dtype=torch.int64, device=indices.device).reshape(-1, 1)
    c1 = (steps & ((1 << STEP_BITS) - 1)) | (int(purpose) << STEP_BITS)
    c2 = (indices & WORD)[:, None]
    c3 = ((indices >> 32) & WORD)[:, None]
    # An int64 seed's sign fills its upper bits when shifted.
    return philox4x32((c0, c1, c2, c3), (seed & WORD, (seed >> 32) & WORD))


def _box_muller(radius_word: Tensor, angle_word: Tensor) -> tuple[Tensor, Tensor]:
    """Two independent normals, float32, from two words held as int64."""
    radius = _square_root(_minus_two_ln(_uniform(radius_word)))
    cosine, sine = _cos_sin(angle_word)
    return radius * cosine, radius * sine


def _uniform(word: Tensor) -> Tensor:
    """u = float32(word) 2^-32 + 2^-33 in [2^-33, 1]; only the conversion and the sum round."""
    return word.to(torch.float32) * 2.0**-32 + 2.0**-33


def _minus_two_ln(u: Tensor) -> Tensor:
    """-2 ln u = e (-2 ln 2) - 2 ln(1 + f), where u = 2^e (1 + f), 1 + f in [sqrt(.5), sqrt(2))."""
    bits = u.view(torch.int32)
    exponent = (bits - SQRT_HALF_BITS) >> 23
    f = (bits - (exponent << 23)).view(torch.float32) - 1.0
    return exponent.to(torch.float32) * MINUS_TWO_LN_2 + f * _polynomial(LOG, f)


def _square_root(x: Tensor) -> Tensor:
    """The float32 root, correctly rounded: torch's own (MKL) is not, but its float64 one suffices.

    The root of a 24-bit number keeps 2^-51 relative distance from every midpoint of two float32
    numbers, more than the float64 error, so the second rounding decides rightly.
    """
    return x.to(torch.float64).sqrt().to(torch.float32)


def _cos_sin(word: Tensor) -> tuple[Tensor, Tensor]:
    """(cos, sin)(pi/2 (q + s)): q = the top two bits, s = the next 24 bits 2^-24 - 1/2."""
    quadrant = word >> 30
    s = (((word >> 6) & 0xFFFFFF) - 0x800000).to(torch.float32) * 2.0**-24
    square = s * s
    cosine, sine = _polynomial(COS, square), s * _polynomial(SIN, square)
    swap = (quadrant & 1) != 0
    x, y = torch.where(swap, sine, cosine), torch.where(swap, cosine, sine)
    # (c, s), (-s, c), (-c, -s), (s, -c) for q = 0, 1, 2, 3
    x = torch.where((quadrant == 1) | (quadrant == 2), -x, x)
    return x, torch.where(quadrant >= 2, -y, y)


def _polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    """Horner's rule from the highest power down, product and sum rounded apart."""
    value = x * coefficients[-1] + coefficients[-2]
    for coefficient in reversed(coefficients[:-2]):
        value = value * x + coefficient
    return value
