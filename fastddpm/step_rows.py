"""The numbers of one reverse step of DDPM and DDIM between two levels ᾱ, for every timestep.

A step is affine in the state, the network's output and the noise, but for the bound of x_0:

    x_0     = bound(x0_from_x x + x0_from_output output)       sample, v_prediction
            = bound(x0_from_x (x + x0_from_output output))     epsilon, as diffusers rounds it
    x_prev  = mean_from_x0 x_0 + mean_from_x x + mean_from_output output + sigma noise

With ᾱ at the timestep and ᾱ' at the one that follows, α = ᾱ/ᾱ' and β = 1 - α:

    DDPM    μ = √ᾱ' β/(1-ᾱ) x_0 + √α (1-ᾱ')/(1-ᾱ) x         Ho et al. 2020, equation 7
    DDIM    μ = √ᾱ' x_0 + √(1-ᾱ'-σ²) ε                      Song et al. 2020, equation 12
            σ = η √((1-ᾱ')/(1-ᾱ) (1-ᾱ/ᾱ'))                  equation 16

The ᾱ given decide the precision: float32 ones are combined in float32 and in the order of
diffusers, so the rows carry its rounding; float64 ones carry none. Either way the rows are float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastddpm.kernels.ancestral_step.reference import STEP_COLUMNS

# Where ᾱ = 0 there is no x_0 in x_t; a power of two keeps the sign of x - ε exactly, which is what
# the bound leaves of diffusers' division by zero.
SMALLEST_SIGNAL = 2.0**-100


def form_of(prediction: str) -> str:
    """The prediction as the kernels' reference names it, by which a step reads these rows."""
    return "epsilon_in_x" if prediction == "epsilon" else prediction


def ancestral_rows(
    alphas_cumprod: Tensor, following: Tensor, prediction: str, variance: str, noisy: Tensor
) -> Tensor:
    """DDPM's rows, float64 [T, 10], columns STEP_COLUMNS.

    alphas_cumprod, following: ᾱ and ᾱ' [T], float32 or float64. noisy: bool [T], where noise is
    added. variance: diffusers' name; one that it does not know is fixed_small there. sigma is 0 for
    a learned variance: noise_gate and the two bounds of its logarithm stand for it.
    """
    beta_prod, beta_prod_prev = 1 - alphas_cumprod, 1 - following
    alpha = alphas_cumprod / following
    beta = 1 - alpha
    small = (beta_prod_prev / beta_prod * beta).clamp(min=1e-20)
    rows = _rows(alphas_cumprod, prediction)
    rows["mean_from_x0"] = following**0.5 * beta / beta_prod
    rows["mean_from_x"] = alpha**0.5 * beta_prod_prev / beta_prod
    deviation = {
        "fixed_small_log": (0.5 * small.log()).exp(),
        "fixed_large": beta**0.5,
        # The root of the logarithm: NaN.
        "fixed_large_log": beta.log() ** 0.5,
        "learned": torch.zeros_like(beta),
        "learned_range": torch.zeros_like(beta),
    }.get(variance, small**0.5)
    rows["sigma"] = deviation.where(noisy, 0)
    rows["log_variance_min"], rows["log_variance_max"] = small.log(), beta.log()
    rows["noise_gate"] = noisy.to(beta.dtype)
    return _stacked(rows)


def ddim_rows(
    alphas_cumprod: Tensor,
    following: Tensor,
    prediction: str,
    eta: Tensor,
    *,
    rederive: bool,
) -> Tensor:
    """DDIM's rows, float64 [T, 10], columns STEP_COLUMNS.

    alphas_cumprod, following: ᾱ and ᾱ' [T]. eta: [T]. rederive: ε is that of x_t and the bounded
    x_0, so that x_t = √ᾱ x_0 + √(1-ᾱ) ε; else the network's, whatever became of x_0.
    """
    signal, noise = alphas_cumprod**0.5, (1 - alphas_cumprod) ** 0.5
    variance = (1 - following) / (1 - alphas_cumprod) * (1 - alphas_cumprod / following)
    sigma = eta * variance**0.5
    direction = (1 - following - sigma**2) ** 0.5
    nothing = torch.zeros_like(signal)
    rows = _rows(alphas_cumprod, prediction)
    rows["sigma"] = sigma
    if rederive:
        means = ddim_mean(alphas_cumprod, following, sigma)
        rows["mean_from_x0"], rows["mean_from_x"] = means
        return _stacked(rows)
    if prediction == "sample":
        from_x0, from_x, from_output = nothing, 1 / noise, -signal / noise
    elif prediction == "v_prediction":
        from_x0, from_x, from_output = nothing, noise, signal
    else:
        from_x0, from_x, from_output = nothing, nothing, torch.ones_like(signal)
    rows["mean_from_x0"] = (following**0.5).double() + direction.double() * from_x0.double()
    rows["mean_from_x"] = direction.double() * from_x.double()
    rows["mean_from_output"] = direction.double() * from_output.double()
    return _stacked(rows)


def ddim_mean(alphas_cumprod: Tensor, following: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """What DDIM's mean takes of x_0 and of x_t, float64 [T], where ε is that of both.

    alphas_cumprod, following: ᾱ and ᾱ' [T], in any order. sigma: [T].
    """
    signal, noise = alphas_cumprod**0.5, (1 - alphas_cumprod) ** 0.5
    direction = ((1 - following - sigma**2) ** 0.5).double()
    from_x0 = (following**0.5).double() + direction * (-signal / noise).double()
    return from_x0, direction * (1 / noise).double()


def _rows(alphas_cumprod: Tensor, prediction: str) -> dict[str, Tensor]:
    """Zeros [T] but for x̂_0 as the prediction gives it."""
    signal, noise = (alphas_cumprod**0.5).double(), ((1 - alphas_cumprod) ** 0.5).double()
    rows = {name: torch.zeros_like(signal) for name in STEP_COLUMNS}
    if prediction == "epsilon":
        signal = signal.clamp(min=SMALLEST_SIGNAL)
        rows["x0_from_x"], rows["x0_from_output"] = 1 / signal, -noise
    elif prediction == "sample":
        rows["x0_from_output"] = torch.ones_like(signal)
    else:
        rows["x0_from_x"], rows["x0_from_output"] = signal, -noise
    return rows


def _stacked(rows: dict[str, Tensor]) -> Tensor:
    rows["timestep"] = torch.arange(len(rows["sigma"]))
    return torch.stack([rows[name].double() for name in STEP_COLUMNS], dim=1)
