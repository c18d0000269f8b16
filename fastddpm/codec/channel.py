"""A Gaussian sent as the number of a candidate that both sides can draw: reverse channel coding.

The receiver knows p = N(0, I), the sender q = N(Δ, r) besides (in p's own coordinates). Both draw

    z_1, z_2, ... ~ p          from the counter noise: candidate k of a block, without the others

and the sender, with arrival times τ_k of a Poisson process, sends the number of

    K = argmin_k τ_k / w(z_k),     w = q/p          Poisson functional representation
                                                    Li and El Gamal 2018; Theis and Yosri 2022

so that z_K ~ q exactly. The logarithm of the ratio is quadratic: two matrix-vector products.

    ln w(z) = ½ (1 - 1/r)·z² + (Δ/r)·z - ½ Δ²/r·1 - ½ ln r·1

**When to stop.** With s the least τ/w so far, a later candidate wins where w > τ/s; their expected
number, if ln w is N(-I, 2I) under p (exactly so for r = 1), is a call of Black and Scholes:

    s E_p[(W - τ/s)^+] = s Φ((I - ln τ/s)/√(2I)) - τ Φ((-I - ln τ/s)/√(2I))

Once that is below ``tolerance`` the search ends, so z_K's law is within it of q in total variation:
a bound where r = 1 (equal variances: "fixed_small"), an estimate for "fixed_large" and learned.
Only the sender searches, and only the number goes into the file: how hard it searches, with which
rounding, is its own affair.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fastddpm import ops
from fastddpm.codec.index_code import INDEX_BITS
from fastddpm.noise import Purpose

# The sample index of the counter noise: image << 40 | block << 24 | candidate; the other half of
# the candidates' numbers is for arrival times.
CANDIDATE_BITS, BLOCK_BITS = 24, 16
ARRIVALS = 1 << (CANDIDATE_BITS - 1)
MOST = (1 << INDEX_BITS) - 1

# Candidates drawn at first, and numbers drawn at once later: as many as stay in a core's cache.
_FIRST, _AT_ONCE = 64, 1 << 18
_LARGEST = 700.0


class Place(NamedTuple):
    """Which block of a file: its seed, step, image and number there."""

    seed: int
    step: int
    image: int
    block: int

    @property
    def base(self) -> int:
        return self.image << (CANDIDATE_BITS + BLOCK_BITS) | self.block << CANDIDATE_BITS

    def draw(self, indices: Tensor, size: int, device: torch.device | str = "cpu") -> Tensor:
        """Normals of some sample indices of the block, float32 [len(indices), size]."""
        where = self.base + indices
        return ops.normal(self.seed, where, self.step, (size,), Purpose.CODING, device=device)


class Choice(NamedTuple):
    """number: K, from 1. missed: how many later candidates would have won, expected."""

    number: int
    missed: float


def candidate(place: Place, index: int, size: int) -> Tensor:
    """z_K, float32 [size]."""
    return place.draw(torch.tensor([index]), size)[0]


def divergence(shift: Tensor, ratio: Tensor) -> float:
    """KL(q ‖ p) in nats, for Δ and r of one shape."""
    shift, ratio = shift.double(), ratio.double()
    return 0.5 * float((shift**2 + ratio - 1 - ratio.log()).sum())


def choose(
    place: Place,
    shift: Tensor,
    ratio: Tensor,
    tolerance: float,
    most: int = MOST,
    device: torch.device | str = "cpu",
) -> Choice:
    """The candidate to send for q = N(shift, ratio), float32 [size] each.

    most: candidates to look at where the tolerance is not met before; at most 2^22 - 1.
    device: where to search; candidates are the same everywhere.
    """
    nats = divergence(shift, ratio)
    square, linear = 0.5 * (1 - 1 / ratio), shift / ratio
    constant = -0.5 * float((shift.double() ** 2 / ratio.double() + ratio.double().log()).sum())
    square, linear = square.to(device), linear.to(device)
    flat = bool((square == 0).all())
    best, index, arrived, first, count = math.inf, 1, 0.0, 1, _FIRST
    while True:
        count = min(count, most + 1 - first)
        z = place.draw(first + torch.arange(count), len(shift), device)
        log_w = (z @ linear if flat else z @ linear + z**2 @ square).cpu().double() + constant
        times = arrived + _waits(place, first, count).cumsum(0)
        scores = times.log() - log_w
        least = int(scores.argmin())
        if float(scores[least]) < best:
            best, index = float(scores[least]), first + least
        arrived, first = float(times[-1]), first + count
        missed = _later_winners(best, math.log(arrived), nats)
        if missed <= tolerance or first > most:
            return Choice(index, missed)
        count = min(2 * count, max(_FIRST, _AT_ONCE // len(shift)))


def _waits(place: Place, first: int, count: int) -> Tensor:
    """Times between arrivals, Exp(1), float64 [count]: half a squared radius of two normals."""
    pairs = place.draw(torch.tensor([ARRIVALS + first]), 2 * count)[0].double().view(count, 2)
    return (pairs**2).sum(1) / 2


def _later_winners(log_score: float, log_time: float, nats: float) -> float:
    """The expected number of winners after this time; see above."""
    if nats <= 0:
        return 0.0
    spread = math.sqrt(2 * nats)
    log_strike = log_time - log_score
    # Bounded where a search is hopeless anyway and exp would overflow.
    gain = math.exp(min(log_score, _LARGEST)) * _normal_cdf((nats - log_strike) / spread)
    price = math.exp(min(log_time, _LARGEST)) * _normal_cdf((-nats - log_strike) / spread)
    return max(gain - price, 0.0)


def _normal_cdf(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))
