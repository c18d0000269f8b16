"""The ways down the chain, each a table of the one affine step.

    x_0 = clip(x̂_0(x, output));    x <- c x_0 + d x + s z;    z ~ N(0, I), or x_0 of the step before

A step leads from the level ᾱ to ᾱ' of the step that follows, 1 at the end. β̃ is the posterior's
variance, λ = ½ log(ᾱ/(1-ᾱ)), h = λ' - λ and h° is h of the step before.

    ancestral       c, d of q(x_{t-1}|x_t, x_0), s = σ_t        Ho et al. 2020, algorithm 2
    ddim            d = √((1-ᾱ'-s²)/(1-ᾱ)), c = √ᾱ' - d √ᾱ,     Song et al. 2020, equations 12, 16
                    s = η √β̃
    dpm-solver++    c° = √ᾱ' - d √ᾱ = √ᾱ' (1 - e^{-h}),         Lu et al. 2022 (DPM-Solver++),
                    d = √((1-ᾱ')/(1-ᾱ)), c = c° (1 + h/2h°),    algorithm 2 (2M)
                    s = -c° h/2h°
    ddim-inverse    ddim with η = 0 the other way, to ᾱ' of the step before; see `inverse`
    langevin        ancestral, with steps of Langevin dynamics at each level; see langevin.py

DDIM takes ε̂ again from the clipped x_0, as OpenAI's code does. DPM-Solver++ is DDIM where it has no
step before, and in its last step, where h is infinite. With η = 1 DDIM is the ancestral step with
σ² = β̃. All tables are float64.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastddpm.diffusion import GaussianDiffusion
from fastddpm.kernels.ancestral_step.reference import STEP_COLUMNS
from fastddpm.step_rows import ddim_mean

NETWORK_AT = ("next", "current")
METHODS = ("ancestral", "ddim", "dpm-solver++", "ddim-inverse", "langevin")


@dataclass(frozen=True, eq=False)
class Method:
    """What the steps of a chain are; the step of index i is row i, and indices count down to 0.

    rows:       float64 [S, 10], columns STEP_COLUMNS.
    timesteps:  int64 [S], the original timestep at which the network is called.
    network_t:  [S], what it is given for that.
    counters:   int64 [S], the word of the noise counter.
    prediction, variance, clip: as ``ops.ancestral_step_`` takes them.
    stochastic: whether z is noise.
    first:      float64 [S, 10], the rows of a chain's first step where those are others; or None.
    rows_per_level: how many rows there are for each level, the last of them first.
    """

    rows: Tensor
    timesteps: Tensor
    network_t: Tensor
    counters: Tensor
    prediction: str
    variance: str
    clip: float | None
    stochastic: bool
    first: Tensor | None = None
    rows_per_level: int = 1

    @property
    def num_steps(self) -> int:
        """S."""
        return len(self.rows)

    def start(self, level: int) -> int:
        """The index of the first step from a level, 0 to T-1."""
        return (level + 1) * self.rows_per_level - 1

    @property
    def in_halves(self) -> bool:
        """Whether the estimate of the step before has a share that no deviation can stand for,
        since the network's own would have that place: see edited_estimate.py."""
        return self.first is not None and self.variance != "fixed_small"


def ancestral(diffusion: GaussianDiffusion, clip: float | None) -> Method:
    """x_{t-1} ~ p(x_{t-1} | x_t)."""
    return _method(
        diffusion, diffusion.step_table(), clip, diffusion.prediction, diffusion.variance
    )


def ddim(diffusion: GaussianDiffusion, clip: float | None, eta: float) -> Method:
    """The step with the same marginals and less noise, or with eta = 0 none."""
    rows = affine_rows(diffusion.step_table(), *_ddim(diffusion, eta))
    return _method(diffusion, rows, clip, stochastic=eta > 0)


def dpm_solver(diffusion: GaussianDiffusion, clip: float | None) -> Method:
    """The second-order multistep solver of the same ODE as DDIM's with eta = 0."""
    from_x0, from_x, _ = _ddim(diffusion, 0.0)
    share = torch.zeros_like(from_x0)  # h / 2h°
    h = _log_snr_steps(diffusion)
    share[1:-1] = h[1:-1] / (2 * h[2:])
    rows = affine_rows(diffusion.step_table(), from_x0 * (1 + share), from_x, -from_x0 * share)
    first = affine_rows(diffusion.step_table(), from_x0, from_x, torch.zeros_like(share))
    return _method(diffusion, rows, clip, stochastic=False, first=first)


def inverse(diffusion: GaussianDiffusion, clip: float | None, network_at: str) -> Method:
    """x_0 to x_T by DDIM's ODE: the rows and timesteps lie in the other order.

    network_at: "next" leads from ᾱ' to ᾱ with the network's output for ᾱ's timestep, so each step
        undoes one of ``ddim``'s and x_0 counts as ᾱ' = 1 (diffusers); "current" leads from ᾱ to the
        one before with ᾱ's own, so x_0 counts as x at the first timestep, and the last step
        leads to ᾱ = 0 (OpenAI's ddim_reverse_sample).
    Undoing a step leaves x_0 as it is: "next" takes no clip. Raises ValueError with it for a
    prediction that does not give ε̂ at a level which is not its timestep's.
    """
    schedule = diffusion.schedule
    if network_at == "current":
        after = torch.cat([schedule.alphas_cumprod[1:], schedule.betas.new_zeros(1)])
        rows = affine_rows(diffusion.step_table(), *_against(schedule.alphas_cumprod, after))
    else:
        rows = _undoing(diffusion)
    upright = _method(diffusion, rows, clip, stochastic=False)
    return replace(
        upright,
        rows=rows.flip(0),
        timesteps=upright.timesteps.flip(0),
        network_t=upright.network_t.flip(0),
        counters=upright.counters.flip(0),
    )


def affine_rows(table: Tensor, from_x0: Tensor, from_x: Tensor, sigma: Tensor) -> Tensor:
    """The rows of a step table, float64 [S, 10], with these c, d and s, float64 [S] each, whatever
    variance the diffusion has.

    A network that gives a variance besides goes on giving it: whatever it says lies between two
    equal bounds. A negative s is that of an estimate, and no deviation: see ``Method.in_halves``.
    """
    zero, noisy = torch.zeros_like(sigma), sigma > 0
    log_variance = torch.where(noisy, 2 * sigma.clamp(min=0).log(), 0)
    rows = table.clone()
    for name, column in (
        ("mean_from_x0", from_x0),
        ("mean_from_x", from_x),
        ("mean_from_output", zero),
        ("sigma", sigma),
        ("log_variance_min", log_variance),
        ("log_variance_max", log_variance),
        ("noise_gate", noisy.to(sigma)),
    ):
        rows[:, STEP_COLUMNS.index(name)] = column
    return rows


def _method(
    diffusion: GaussianDiffusion,
    rows: Tensor,
    clip: float | None,
    prediction: str = "epsilon",
    variance: str | None = None,
    *,
    stochastic: bool = True,
    first: Tensor | None = None,
) -> Method:
    """The method of these rows, one for each of the diffusion's own steps."""
    timesteps = diffusion.schedule.timesteps
    network_t = diffusion.model_timesteps(torch.arange(len(timesteps), device="cpu"))
    variance = variance or ("learned_range" if diffusion.learns_variance else "fixed_small")
    given = (prediction, variance, clip, stochastic, first)
    return Method(rows, timesteps, network_t, timesteps, *given)


def _ddim(diffusion: GaussianDiffusion, eta: float) -> tuple[Tensor, Tensor, Tensor]:
    """c, d and s."""
    schedule = diffusion.schedule
    sigma = eta * schedule.posterior_variance.sqrt()
    return *ddim_mean(schedule.alphas_cumprod, schedule.alphas_cumprod_prev, sigma), sigma


def _against(now: Tensor, then: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """c, d and s from levels ᾱ to levels ᾱ' with more noise."""
    nothing = torch.zeros_like(now)
    return *ddim_mean(now, then, nothing), nothing


def _log_snr_steps(diffusion: GaussianDiffusion) -> Tensor:
    """h of each step, float64 [T]; infinite where a level has no noise, or no signal."""
    schedule = diffusion.schedule
    levels = torch.cat([schedule.betas.new_ones(1), schedule.alphas_cumprod])
    half_log_snr = 0.5 * (levels.log() - torch.log1p(-levels))
    return half_log_snr[:-1] - half_log_snr[1:]


def _undoing(diffusion: GaussianDiffusion) -> Tensor:
    """Rows from ᾱ' to ᾱ with the output for ᾱ."""
    if diffusion.prediction not in ("epsilon", "v_prediction"):
        raise ValueError(
            "network_at='next' needs a network that predicts epsilon or v, this one predicts "
            f"{diffusion.prediction!r}; network_at='current' takes any"
        )
    now, then = diffusion.schedule.alphas_cumprod_prev, diffusion.schedule.alphas_cumprod
    signal, noise = now.sqrt(), (1 - now).sqrt()
    if diffusion.prediction == "epsilon":
        x0_from_x, x0_from_output = 1 / signal, -noise / signal
    else:
        x0_from_x, x0_from_output = signal, -noise
    from_x0, from_x, sigma = _against(now, then)
    # At ᾱ' = 1 x_0 = x says nothing of ε̂, which both outputs are there. x <- √ᾱ x + √(1-ᾱ) ε̂ is
    # made of x - ε̂ in the place of x_0.
    x0_from_x[0], x0_from_output[0] = 1, -1
    from_x0[0], from_x[0] = -(1 - then[0]).sqrt(), then[0].sqrt() + (1 - then[0]).sqrt()
    rows = affine_rows(diffusion.step_table(), from_x0, from_x, sigma)
    rows[:, STEP_COLUMNS.index("x0_from_x")] = x0_from_x
    rows[:, STEP_COLUMNS.index("x0_from_output")] = x0_from_output
    return rows
