"""Annealed Langevin dynamics down the levels of the chain, with the chain's own betas.

    x <- x + η_t s(x, t) + √(2 η_t) z,    η_t = r β_t       K corrections at each level
    x <- (x + β_t s(x, t))/√α_t + σ_t z                     and the step to the next

s = (√ᾱ_t x_0 - x)/(1-ᾱ_t) = -ε/√(1-ᾱ_t) is the score of q(x_t) as the network estimates it, x_0
bounded as anywhere. The second line is the ancestral step (Ho et al. 2020, section 3.2: "resembles
Langevin dynamics with ε_θ as a learned gradient"), so K = 0 is the ancestral chain; with
corrections it is the predictor-corrector sampler of Song et al. 2021 (algorithm 5, "variance
preserving"), which corrects after its step and so at x_0, too, where there is no level left. There
η_t comes from norms over the batch; here β gives it, since an image depends on its own noise alone.

r = ½, the default, is the share of Langevin dynamics in the reverse process itself: its equation
dx = (½β x + ½β s) dt + ½β s dt + √β dw (Song et al. 2021, equation 6) is the probability-flow ODE
and then a correction with η = β/2, whose noise is the ancestral step's. With r <= 1 no correction
passes x_0's own place: β_t <= 1-ᾱ_t, so x keeps the share 1 - η_t/(1-ᾱ_t) >= 0. Langevin dynamics
in steps is not exact: data of variance v at the level settle at v/(1 - η_t/2v).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fastddpm.diffusion import GaussianDiffusion
from fastddpm.kernels.ancestral_step.reference import STEP_COLUMNS
from fastddpm.sampler.edited_estimate import rows_for_edits
from fastddpm.sampler.methods import Method, affine_rows, ancestral

STEP_SIZE = 0.5
# The word of the noise counter has 24 bits: 16 are the timestep's, 8 the correction's. The step to
# the next level is number 0, which leaves it the ancestral chain's noise.
TIMESTEP_BITS, MOST_CORRECTIONS = 16, 255


def langevin(
    diffusion: GaussianDiffusion, clip: float | None, corrections: int, step_size: float
) -> Method:
    """The chain with K ``corrections`` at each level and r = ``step_size``.

    Raises ValueError for more than MOST_CORRECTIONS, and with corrections for timesteps from 2^16.
    """
    method = ancestral(diffusion, clip)
    if corrections == 0:
        return method
    last = int(method.timesteps[-1])
    if corrections > MOST_CORRECTIONS or last >> TIMESTEP_BITS:
        raise ValueError(
            f"expected at most {MOST_CORRECTIONS} corrections at timesteps below "
            f"{1 << TIMESTEP_BITS}, got {corrections} and timesteps up to {last}"
        )
    number = torch.arange(corrections + 1, device="cpu").repeat(method.num_steps)
    level = torch.arange(method.num_steps, device="cpu").repeat_interleave(corrections + 1)
    rows = torch.where(
        (number == 0)[:, None],
        _steps(diffusion, method)[level],
        _corrections(diffusion, step_size)[level],
    )
    return replace(
        method,
        rows=rows,
        timesteps=method.timesteps[level],
        network_t=method.network_t[level],
        counters=method.counters[level] | number << TIMESTEP_BITS,
        prediction="epsilon",
        variance="learned_range" if diffusion.learns_variance else "fixed_small",
        rows_per_level=corrections + 1,
    )


def _steps(diffusion: GaussianDiffusion, method: Method) -> Tensor:
    """The ancestral rows, float64 [T, 10], as the corrections' settings read them."""
    rows = rows_for_edits(diffusion, method).clone()
    if diffusion.variance == "learned":
        # v = (v+1)/2 - (1 - (v+1)/2): a logarithm within the range of -1 and 1.
        rows[:, STEP_COLUMNS.index("log_variance_min")] = -1
        rows[:, STEP_COLUMNS.index("log_variance_max")] = 1
    return rows


def _corrections(diffusion: GaussianDiffusion, step_size: float) -> Tensor:
    """One row for each level, float64 [T, 10]."""
    schedule = diffusion.schedule
    size = step_size * schedule.betas
    share = size / (1 - schedule.alphas_cumprod)
    from_x0 = share * schedule.alphas_cumprod.sqrt()
    return affine_rows(diffusion.step_table(), from_x0, 1 - share, (2 * size).sqrt())
