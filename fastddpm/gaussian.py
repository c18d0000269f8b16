"""Gaussians: the divergence between two, and the likelihood of a pixel's bin under one.

    KL(N(m1, v1) ‖ N(m2, v2)) = ½ (log v2 - log v1 + v1/v2 + (m1-m2)²/v2 - 1)

    p(x_0 | x_1) = Φ((x + 1/255 - μ)/σ) - Φ((x - 1/255 - μ)/σ)       Ho et al. 2020, equation 13

for images x = u/127.5 - 1 of uint8 u; the first bin is open below and the last one above.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
from torch import Tensor

CDFS = ("tanh", "erf")
Real: TypeAlias = Tensor | float

_HALF_BIN = 1 / 255
# Between the last two of the 256 levels, 253/255 and 1.
_EDGE = 0.999


def normal_kl(mean1: Real, log_variance1: Real, mean2: Real, log_variance2: Real) -> Tensor:
    """KL(N(mean1, exp log_variance1) ‖ N(mean2, exp log_variance2)) per element, in nats.

    Tensors and numbers broadcast; the result has the tensors' dtype.
    Raises ValueError if none of the four is a tensor.
    """
    tensors = [a for a in (mean1, log_variance1, mean2, log_variance2) if isinstance(a, Tensor)]
    if not tensors:
        raise ValueError("expected a tensor among the means and log-variances, got numbers only")
    m1, v1, m2, v2 = (
        a if isinstance(a, Tensor) else tensors[0].new_tensor(a)
        for a in (mean1, log_variance1, mean2, log_variance2)
    )
    # expm1(d) - d is the variances' part; written so, equal variances give 0 without cancellation.
    ratio = v1 - v2
    return 0.5 * (torch.expm1(ratio) - ratio + (m1 - m2) ** 2 * torch.exp(-v2))


def discretized_gaussian_log_likelihood(
    x: Tensor, mean: Tensor, log_scale: Tensor, cdf: str = "tanh"
) -> Tensor:
    """log of the mass that N(mean, exp(2 log_scale)) puts on the bin x ± 1/255, in nats.

    x, mean, log_scale: floating point, broadcast together; x in [-1, 1], log_scale = log σ.
    cdf: "tanh" is the approximation of Φ of Ho's and OpenAI's code (off by up to 1.8e-4), its
    masses floored at 1e-12; "erf" is exact, with logarithms that do not vanish in the tails.

    Raises ValueError for another cdf.
    """
    if cdf not in CDFS:
        raise ValueError(f"expected a cdf in {', '.join(CDFS)}, got {cdf!r}")
    return (_tanh_bin if cdf == "tanh" else _erf_bin)(x, mean, log_scale)


def open_tail(x: Tensor) -> Tensor:
    """Which bins are open: int64 like x, -1 below (the level -1), 1 above (the level 1), else 0."""
    return (x > _EDGE).long() - (x < -_EDGE).long()


def _tanh_bin(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    centred = x - mean
    inverse = torch.exp(-log_scale)
    above = _tanh_cdf((centred + _HALF_BIN) * inverse)
    below = _tanh_cdf((centred - _HALF_BIN) * inverse)
    tail = open_tail(x)
    mass = torch.where(tail < 0, above, torch.where(tail > 0, 1 - below, above - below))
    return mass.clamp(min=1e-12).log()


def _tanh_cdf(z: Tensor) -> Tensor:
    # 0 or 1 to the last bit of float64 beyond ±10, where z³ could overflow and its gradient be NaN
    z = z.clamp(-10, 10)
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))


def _erf_bin(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """log(Φ(high) - Φ(low)) = log Φ(high) + log(1 - exp(log Φ(low) - log Φ(high)))."""
    dtype = torch.promote_types(torch.promote_types(x.dtype, mean.dtype), log_scale.dtype)
    # float64: a bin much narrower than σ is the difference of two nearly equal numbers.
    centred = x.double() - mean.double()
    inverse = torch.exp(-log_scale.double())
    high = (centred + _HALF_BIN) * inverse
    low = (centred - _HALF_BIN) * inverse
    tail = open_tail(x)
    edge = torch.special.log_ndtr(torch.where(tail < 0, high, -low))
    # Φ(high) - Φ(low) = Φ(-low) - Φ(-high): taken on the left, where log Φ has full precision.
    right = centred > 0
    upper = torch.special.log_ndtr(torch.where(right, -low, high))
    lower = torch.special.log_ndtr(torch.where(right, -high, low))
    bin_ = upper + torch.log(-torch.expm1(lower - upper))
    return torch.where(tail != 0, edge, bin_).to(dtype)
