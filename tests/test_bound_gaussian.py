"""The bound on Gaussian data, whose density, best network and every expected term are known.

With a network that is linear in x_t a term is a quadratic in (x_0, ε), so its expectation over both
is its mean over the four points (m ± √v, ±1), without sampling error: they are the pixels here.

    the terms           σ_t² = β̃_t     c_t + w_t E(x̂_0 - x_0)²,   E(x̂_0 - x_0)² = Var(x_0|x_t)
    a bound with no     σ_t² = β̃_t + coef1² Var(x_0|x_t), the variance of q(x_{t-1}|x_t): the bound
    gap                 is the data's entropy and KL(q(x_T) ‖ N(0, I)), for a prior that is not q's
"""

from __future__ import annotations

import math

import gaussian_data as gaussian
import pytest
import torch
from gaussian_data import MEAN, VARIANCE
from torch import Tensor

from fastddpm import GaussianDiffusion, NoiseSchedule
from fastddpm.evaluation import Bound, bits_per_dim, bound_of_data
from fastddpm.evaluation.terms import Decoder

SIGNS = torch.tensor([[1, 1], [-1, -1]], dtype=torch.float64)
IMAGE = (MEAN + VARIANCE**0.5 * SIGNS)[None, None]
NOISE = SIGNS.T[None, None]


def quadrature(t: int, shape: tuple[int, ...]) -> Tensor:
    """Every pair of signs of x_0 - m and of ε, one a pixel."""
    assert shape == tuple(NOISE.shape)
    return NOISE


def posterior_variance(levels: Tensor) -> Tensor:
    """Var(x_0|x_t)."""
    return (1 - levels) * VARIANCE / gaussian.spread(levels) ** 2


def test_every_term_is_its_closed_form() -> None:
    d = gaussian.DIFFUSION
    found = bits_per_dim(gaussian.network, d, IMAGE, noise=quadrature, dtype=torch.float64)
    levels = d.schedule.alphas_cumprod
    expected = posterior_variance(levels)
    torch.testing.assert_close(found.mse[0], expected, rtol=1e-9, atol=0)
    # The divergence of two Gaussians of one variance whose means differ by coef1 (x̂_0 - x_0).
    s = d.schedule
    divergence = s.posterior_mean_coef1**2 * expected / (2 * s.posterior_variance) / math.log(2)
    torch.testing.assert_close(found.vb[0, 1:], divergence[1:], rtol=1e-9, atol=0)
    a = levels[-1]
    prior = 0.5 * (a * (MEAN**2 + VARIANCE) + (1 - a) - 1 - (1 - a).log()) / math.log(2)
    torch.testing.assert_close(found.prior[0], prior, rtol=1e-7, atol=0)


# β_0 large enough that a bin is narrow beside σ_0: then its mass is a density times its width.
SCHEDULES = {
    "constant": NoiseSchedule.from_betas(torch.full((40,), 0.1, dtype=torch.float64)),
    "linear": NoiseSchedule.linear(100, 0.03, 0.15),
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("decoder", "most"), [("erf", 1e-4), ("tanh", 1e-3)])
def test_with_the_best_network_and_variance_it_is_the_entropy(
    schedule: NoiseSchedule, dtype: torch.dtype, decoder: Decoder, most: float
) -> None:
    """tanh is only nearly Φ: its "bound" may lie on either side."""
    d = GaussianDiffusion(schedule, variance="learned", clip=None)
    levels = schedule.alphas_cumprod
    spread = levels * VARIANCE + 1 - levels
    coef1, own = schedule.posterior_mean_coef1, schedule.posterior_variance
    log_variance = (own + coef1**2 * (1 - levels) * VARIANCE / spread).log()

    def best(x: Tensor, t: Tensor) -> Tensor:
        a, s, v = (table[t].reshape(-1, 1, 1, 1) for table in (levels, spread, log_variance))
        epsilon = (1 - a).sqrt() * (x.double() - a.sqrt() * MEAN) / s
        return torch.cat([epsilon, v.expand_as(epsilon)], dim=1).to(x.dtype)

    found = bits_per_dim(best, d, IMAGE.to(dtype), noise=quadrature, decoder=decoder).total
    entropy = 0.5 * math.log2(2 * math.pi * math.e * VARIANCE) - math.log2(2 / 255)
    a = float(levels[-1])
    of_x_T = (math.sqrt(a) * MEAN, a * VARIANCE + 1 - a)
    gap = 0.5 * (of_x_T[1] + of_x_T[0] ** 2 - 1 - math.log(of_x_T[1])) / math.log(2)
    assert abs(float(found) - (entropy + gap)) < most


def test_the_mean_over_drawn_data_is_the_closed_form() -> None:
    """As the data set's own interval tells, from all timesteps and from six an image."""
    steps = range(0, 1000, 40)
    d = gaussian.DIFFUSION.respace(steps)
    levels, s = d.schedule.alphas_cumprod, d.schedule
    mse = posterior_variance(levels)
    vb = s.posterior_mean_coef1**2 * mse / (2 * s.posterior_variance) / math.log(2)
    bound = Bound(gaussian.network, d, "reference", batch_size=1000)
    for timesteps in (None, 6):
        found = bound_of_data(bound, gaussian.draws(3000), timesteps=timesteps)
        deviation = found.vb.interval() / 1.96
        # Of 25 terms, one is 4.5 deviations off once in 6,000 times.
        assert ((found.vb.mean - vb)[1:].abs() < 4.5 * deviation[1:]).all()
        assert found.images == 3000
