"""DDIM: the non-Markovian step with the same training objective, and its inversion.

    x_{t-1} = √ᾱ_{t-1} x̂_0 + √(1 - ᾱ_{t-1} - σ²) ε̂ + σ z,      σ = η √β̃_t
    x_{t+1} = √ᾱ_{t+1} x̂_0 + √(1 - ᾱ_{t+1}) ε̂                  (the ODE run backwards, η = 0)

Song, Meng, Ermon 2020, equations 12, 14 and 16.  ε̂ is taken again from the clipped x̂_0, as in
OpenAI's code.  η = 1 is the ancestral step with σ² = β̃_t.
"""

from __future__ import annotations

from torch import Tensor

from fastddpm.diffusion import GaussianDiffusion


def ddim_step(
    diffusion: GaussianDiffusion,
    model_output: Tensor,
    x_t: Tensor,
    t: Tensor,
    noise: Tensor | None = None,
    eta: float = 0.0,
) -> Tensor:
    """x_{t-1} from a network's output at x_t [B, C, ...], step indices t int64 [B].

    noise: like x_t, needed if eta is above 0; none is added at step 0.
    Raises ValueError for eta outside [0, 1], or without the noise that eta needs.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"expected eta in [0, 1], got {eta}")
    p = diffusion.p_mean_variance(model_output, x_t, t)
    signal = diffusion.coefficients.at("signal_prev", t, x_t)
    variance = eta**2 * diffusion.coefficients.at("posterior_variance", t, x_t)
    direction = (
        (diffusion.coefficients.at("noise_variance_prev", t, x_t) - variance).clamp(min=0).sqrt()
    )
    mean = signal * p.x_0 + direction * p.epsilon
    if eta == 0:
        return mean
    if noise is None:
        raise ValueError(f"expected noise of shape {list(x_t.shape)} for eta = {eta}, got none")
    # β̃ is 0 at step 0, so nothing is added there.
    return mean + variance.sqrt() * noise


def ddim_reverse_step(
    diffusion: GaussianDiffusion, model_output: Tensor, x_t: Tensor, t: Tensor
) -> Tensor:
    """x_{t+1} of the deterministic chain from a network's output at x_t; at T-1 it is ε̂."""
    p = diffusion.p_mean_variance(model_output, x_t, t)
    signal = diffusion.coefficients.at("signal_next", t, x_t)
    noise = diffusion.coefficients.at("noise_next", t, x_t)
    return signal * p.x_0 + noise * p.epsilon
