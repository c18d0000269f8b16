"""The variance that is best for a network's mean, from a measurement on data.

    σ² = λ² + c² Var,    Var = (1-ᾱ)/ᾱ (1 - E‖ε̂‖²/D)         Bao et al. 2022, theorem 1, equation 7

λ² is the variance of q(x_{t-1} | x_t, x_0), c what the mean takes of x_0, and Var the mean variance
of x_0 given x_t. It lies in [0, 1] for data in [-1, 1] (theorem 2), whatever the measurement says.
At ᾱ = 0, where x_t and so E‖ε̂‖² tell nothing of it, it is E‖x̂_0 - x_0‖²/D.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fastddpm.diffusion import GaussianDiffusion
from fastddpm.kernels.ancestral_step.reference import STEP_COLUMNS
from fastddpm.sampler.measured import Measured
from fastddpm.sampler.methods import Method, affine_rows


def with_analytic_variance(
    diffusion: GaussianDiffusion, method: Method, eta: float, measured: Measured
) -> Method:
    """The ancestral (eta = 1) or DDIM's step with this variance. No noise is added at the last
    step. Raises ValueError if a timestep of the diffusion was not measured."""
    schedule = diffusion.schedule
    from_x0, from_x = (
        method.rows[:, STEP_COLUMNS.index(name)] for name in ("mean_from_x0", "mean_from_x")
    )
    if eta == 1:
        from_x0, from_x = schedule.posterior_mean_coef1, schedule.posterior_mean_coef2
    variance = eta**2 * schedule.posterior_variance
    variance = variance + from_x0**2 * x_0_variance(diffusion, measured)
    variance[0] = 0
    return replace(
        method,
        rows=affine_rows(method.rows, from_x0, from_x, variance.sqrt()),
        prediction="epsilon",
        variance="learned_range" if diffusion.learns_variance else "fixed_small",
        stochastic=True,
    )


def x_0_variance(diffusion: GaussianDiffusion, measured: Measured) -> Tensor:
    """Var above, float64 [T]."""
    alphas_cumprod = diffusion.schedule.alphas_cumprod
    found = measured.at(diffusion.schedule.timesteps)
    of_epsilon = (1 - alphas_cumprod) / alphas_cumprod * (1 - found.epsilon_square)
    return torch.where(alphas_cumprod > 0, of_epsilon, found.x_0_error).clamp(0, 1)
