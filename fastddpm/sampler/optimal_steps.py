"""The K timesteps with the lowest bound on -log p(x_0), by dynamic programming.

    L = min over T = t_K > ... > t_1 > t_0 = 0 of  Σ_k L(t_k, t_{k-1})       Watson et al. 2021

Level t is x_t, 0 the image. The bound of a path is a sum over its steps, so the best one of k steps
goes on as the best one of k - 1. A term needs of the network only its error e_t = E‖x̂_0 - x_0‖²/D
at the level that the step leaves (nats per dimension, SNR = ᾱ/(1-ᾱ)):

    fixed_small    L(t, s) = ½ (SNR_s - SNR_t) e_t                    σ² = β̃ of the step (Design I)
    analytic       L(t, s) = ½ log(1 + (SNR_s - SNR_t) e_t)           the best σ² (Bao et al. 2022)
    both           L(t, 0) = max(0, ½ log(2πe e_t) + log 127.5)       Gaussian of variance e_t on
                                                                      bins of 2/255

The best likelihood is not the best picture: for that a quadratic stride does better.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastddpm.diffusion import GaussianDiffusion
from fastddpm.sampler.measured import Measured

VARIANCES = ("fixed_small", "analytic")


def optimal_timesteps(
    diffusion: GaussianDiffusion, measured: Measured, steps: int, variance: str = "fixed_small"
) -> list[int]:
    """The steps, 0 to T-1 and T-1 among them, ascending: what ``sample(steps=...)`` takes.

    Raises ValueError unless 1 <= steps <= T, and as ``bound_terms`` does.
    """
    return cheapest_path(bound_terms(diffusion, measured, variance), steps)


def bound_terms(
    diffusion: GaussianDiffusion, measured: Measured, variance: str = "fixed_small"
) -> Tensor:
    """L(t, s) in bits per dimension, float64 [T+1, T+1]; infinite where s is not below t.

    Raises ValueError for another variance, or a timestep that was not measured.
    """
    if variance not in VARIANCES:
        raise ValueError(f"variance is one of {', '.join(VARIANCES)}; got {variance!r}")
    error = measured.at(diffusion.schedule.timesteps).x_0_error
    snr = diffusion.schedule.snr
    kl = 0.5 * (snr[None] - snr[:, None]) * error[:, None]  # [t - 1, s - 1]
    if variance == "analytic":
        kl = 0.5 * torch.log1p(2 * kl.clamp(min=0))
    decoder = (0.5 * torch.log(2 * math.pi * math.e * error) + math.log(127.5)).clamp(min=0)
    terms = torch.full([len(snr) + 1] * 2, math.inf, dtype=torch.float64)
    terms[1:, 1:] = kl
    terms[1:, 0] = decoder
    below = torch.ones_like(terms, dtype=torch.bool).tril(-1)
    return torch.where(below, terms / math.log(2), math.inf)


def cheapest_path(terms: Tensor, steps: int) -> list[int]:
    """The levels less 1 that the cheapest path from T to 0 in so many steps leaves, ascending.

    terms: [T+1, T+1], the cost of a step from level t to level s < t. Raises ValueError unless
    1 <= steps <= T.
    """
    T = len(terms) - 1
    if not 1 <= steps <= T:
        raise ValueError(f"expected between 1 and T = {T} steps, got {steps}")
    below = torch.ones_like(terms, dtype=torch.bool).tril(-1)
    costs = torch.where(below, terms.double(), math.inf)
    # cost[t]: of the best path from t to 0 in k steps, beginning with k = 1.
    cost, following = costs[:, 0], []
    for _ in range(steps - 1):
        cost, best = (costs + cost).min(dim=1)
        following.append(best)
    path = [T]
    for best in reversed(following):
        path.append(int(best[path[-1]]))
    return sorted(level - 1 for level in path)
