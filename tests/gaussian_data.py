"""Data x_0 ~ N(m, v I), for which the best network is known, and all that it leads to.

    x_t ~ N(√ᾱ m, ᾱ v + 1 - ᾱ),     ε̂(x_t) = E[ε | x_t] = √(1-ᾱ) (x_t - √ᾱ m)/(ᾱ v + 1 - ᾱ)

DDIM's ODE moves quantiles: (x_t - √ᾱ m)/√(ᾱ v + 1 - ᾱ) stays. All in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastddpm import GaussianDiffusion, NoiseSchedule

MEAN, VARIANCE = 0.3, 0.25
SHAPE = (3, 4, 4)
DIFFUSION = GaussianDiffusion(NoiseSchedule.linear(1000), clip=None)


def spread(alphas_cumprod: Tensor) -> Tensor:
    """The standard deviation of x_t."""
    return (alphas_cumprod * VARIANCE + 1 - alphas_cumprod).sqrt()


def network(x: Tensor, t: Tensor) -> Tensor:
    """ε̂ for the original timesteps t of DIFFUSION, in x's dtype."""
    a = DIFFUSION.schedule.alphas_cumprod[t].reshape(-1, *[1] * (x.ndim - 1))
    return ((1 - a).sqrt() * (x.double() - a.sqrt() * MEAN) / spread(a) ** 2).to(x.dtype)


def draws(count: int, seed: int = 0) -> Tensor:
    """Images, float32 [count, *SHAPE]."""
    z = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))
    return MEAN + VARIANCE**0.5 * z


def x_T_of(x_0: Tensor) -> Tensor:
    """Where the ODE leads x_0, float64."""
    a = DIFFUSION.schedule.alphas_cumprod[-1]
    return a.sqrt() * MEAN + spread(a) * (x_0.double() - MEAN) / VARIANCE**0.5


def x_0_of(x_T: Tensor) -> Tensor:
    """Where it comes from, float64."""
    a = DIFFUSION.schedule.alphas_cumprod[-1]
    return MEAN + VARIANCE**0.5 * (x_T.double() - a.sqrt() * MEAN) / spread(a)
