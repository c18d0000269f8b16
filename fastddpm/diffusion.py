"""GaussianDiffusion: the reverse process of a network, its losses and its step table.

The reverse step.  A network's output gives x̂_0, and x̂_0 gives the mean of

    p(x_{t-1} | x_t) = N(μ̃_t(x_t, x̂_0), σ_t² I)                     Ho et al. 2020, algorithm 2

    prediction          x̂_0                                          the network is trained on
    epsilon             x_t/√ᾱ_t - √(1/ᾱ_t - 1) ε̂                    ε
    sample              the output                                    x_0
    v_prediction        √ᾱ_t x_t - √(1-ᾱ_t) v̂                         v = √ᾱ_t ε - √(1-ᾱ_t) x_0
    previous_sample     what makes μ̃_t the output                     μ̃_t(x_t, x_0)

    variance            σ_t²
    fixed_small         β̃_t: exact if x_0 is one point                lower bound of the entropy
    fixed_large         β_t: exact if x_0 ~ N(0, I)                   upper bound of the entropy
    learned             exp(v), v the second half of the channels
    learned_range       exp(f log β_t + (1-f) log β̃_t), f = (v+1)/2   Nichol & Dhariwal 2021, eq. 15

The bound.  With x_0 discrete, -log p(x_0) is at most

    KL(q(x_T|x_0) ‖ N(0, I))  +  Σ_{t≥2} KL(q(x_{t-1}|x_t,x_0) ‖ p(x_{t-1}|x_t))  -  log p(x_0|x_1)
    prior: `prior_bpd`           denoising: `vb_term`, index ≥ 1                    decoder: index 0

in expectation over q (equation 5).  A denoising term is a weighted square, once σ_t² is fixed:

    Design I    ½ (SNR_{t-1} - SNR_t) ‖x̂_0 - x_0‖²           if σ_t² = β̃_t     `kl_weight_x0`
    Design II   β_t²/(2 σ_t² α_t (1-ᾱ_t)) ‖ε̂ - ε‖²            (equation 12)     `kl_weight_epsilon`
    L_simple    ‖ε - ε̂(√ᾱ_t x_0 + √(1-ᾱ_t) ε, t)‖²           weight 1 (equation 14)
    L_hybrid    L_simple + λ L_vlb, the mean held fixed in L_vlb            (Nichol, eq. 16)

The score.  ∇ log q(x_t | x_0) = -ε/√(1-ᾱ_t), so L_simple is denoising score matching, ε̂ estimates
-√(1-ᾱ_t) ∇ log q(x_t), and the step is annealed Langevin dynamics with step sizes set by β:

    x_{t-1} = (x_t + β_t s(x_t, t))/√α_t + σ_t z
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fastddpm.coefficients import Coefficients
from fastddpm.gaussian import discretized_gaussian_log_likelihood, normal_kl
from fastddpm.kernels.ancestral_step.reference import LEARNED_VARIANCES, STEP_COLUMNS
from fastddpm.kernels.ancestral_step.reference import PREDICTIONS as PREDICTIONS
from fastddpm.kernels.ancestral_step.reference import VARIANCES as VARIANCES
from fastddpm.schedule import NoiseSchedule

LOSSES = ("simple", "vlb", "rescaled_vlb", "hybrid", "min_snr")
LAST_STEP_NOISE = ("none", "diffusers")

Model = Callable[[Tensor, Tensor], Tensor]


class Prediction(NamedTuple):
    """p(x_{t-1} | x_t) and what it was made of; each [B, C, ...] like x_t.

    x_0 is clipped if the diffusion clips, and epsilon goes with it:
    x_t = √ᾱ_t x_0 + √(1-ᾱ_t) epsilon.
    """

    mean: Tensor
    variance: Tensor
    log_variance: Tensor
    x_0: Tensor
    epsilon: Tensor


@dataclass(frozen=True, eq=False)
class GaussianDiffusion:
    """A noise schedule with the meaning of a network's output.

    schedule: the chain's T steps.
    prediction, variance: see above; one of PREDICTIONS and VARIANCES.
    clip: x̂_0 is clamped to [-clip, clip]; None leaves it alone.
    last_step_noise: "none" adds no noise at step 0.  "diffusers" adds it there too if the step's
        original timestep is not 0 (trailing spacing), with β̃_0 floored at 1e-20 and β_0 as the
        large variance, as DDPMScheduler does.
    timestep_scale: None gives the network int64 original timesteps; a number gives it float32
        timesteps times that number (1000/T_original is OpenAI's rescale_timesteps).

    In all methods x is floating point [B, C, ...] with any number of spatial dimensions, and t
    is int64 [B], step indices in [0, T).  float64 inputs are computed in float64, others in
    float32 with tables rounded once.  ValueError for a t or an output that does not fit x; the
    range of t is checked on the CPU only, for on a GPU it would stop the stream.
    """

    schedule: NoiseSchedule
    prediction: str = "epsilon"
    variance: str = "fixed_small"
    clip: float | None = 1.0
    last_step_noise: str = field(default="none", kw_only=True)
    timestep_scale: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        _choice("prediction", self.prediction, PREDICTIONS)
        _choice("variance", self.variance, VARIANCES)
        _choice("last_step_noise", self.last_step_noise, LAST_STEP_NOISE)
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"expected clip above 0 or None, got {self.clip}")
        if self.timestep_scale is not None and not self.timestep_scale > 0:
            raise ValueError(f"expected timestep_scale above 0 or None, got {self.timestep_scale}")

    @property
    def num_steps(self) -> int:
        """T, the number of reverse steps."""
        return len(self.schedule)

    @cached_property
    def coefficients(self) -> Coefficients:
        """The tables that the equations below take their numbers from."""
        return Coefficients(
            self.schedule,
            self.prediction,
            self.variance,
            self.last_step_noise,
            self.timestep_scale,
        )

    @property
    def learns_variance(self) -> bool:
        """Whether the network's output has 2C channels."""
        return self.variance in LEARNED_VARIANCES

    def respace(self, timesteps: Tensor | Sequence[int]) -> GaussianDiffusion:
        """The same settings on `NoiseSchedule.respace(timesteps)`."""
        return replace(self, schedule=self.schedule.respace(timesteps))

    # ---- the forward process

    def q_mean_variance(self, x_0: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance and log-variance of q(x_t | x_0) = N(√ᾱ_t x_0, (1-ᾱ_t) I); like x_0."""
        self._check(x_0, t)
        return (
            self.coefficients.at("signal", t, x_0) * x_0,
            self.coefficients.at("noise_variance", t, x_0).expand(x_0.shape),
            self.coefficients.at("noise_log_variance", t, x_0).expand(x_0.shape),
        )

    def q_sample(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t = √ᾱ_t x_0 + √(1-ᾱ_t) noise, noise ~ N(0, I) of x_0's shape (equation 4)."""
        self._check(x_0, t, noise=noise)
        return (
            self.coefficients.at("signal", t, x_0) * x_0
            + self.coefficients.at("noise", t, x_0) * noise
        )

    def q_posterior(self, x_0: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance and clipped log-variance of q(x_{t-1} | x_t, x_0) (equations 6, 7)."""
        self._check(x_t, t, x_0=x_0)
        mean = (
            self.coefficients.at("coef1", t, x_t) * x_0
            + self.coefficients.at("coef2", t, x_t) * x_t
        )
        return (
            mean,
            self.coefficients.at("posterior_variance", t, x_t).expand(x_t.shape),
            self.coefficients.at("posterior_log_variance", t, x_t).expand(x_t.shape),
        )

    # ---- the reverse process

    def model_timesteps(self, t: Tensor) -> Tensor:
        """What the network gets for step indices t [B]: int64 original timesteps, or float32."""
        dtype = torch.int64 if self.timestep_scale is None else torch.float32
        return self.coefficients.copy("timestep", t.device, dtype)[t]

    def p_mean_variance(self, model_output: Tensor, x_t: Tensor, t: Tensor) -> Prediction:
        """p(x_{t-1} | x_t) from a network's output [B, C, ...], or [B, 2C, ...] if it learns σ².

        Raises ValueError for "epsilon" on a schedule whose last ᾱ is 0: x_T has no signal left,
        so ε̂ cannot give x̂_0 there ("sample" and "v_prediction" can).
        """
        return self._predict(model_output, x_t, t, self.clip)

    def p_step(self, model_output: Tensor, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_{t-1} = mean + σ_t noise, noise ~ N(0, I) like x_t; none is added at the last step."""
        self._check(x_t, t, noise=noise)
        p = self.p_mean_variance(model_output, x_t, t)
        if self.learns_variance:
            sigma = self.coefficients.at("noise_gate", t, x_t) * (0.5 * p.log_variance).exp()
            return p.mean + sigma * noise
        return p.mean + self.coefficients.at("sigma", t, x_t) * noise

    def score(self, model_output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The network's estimate of ∇ log q(x_t): -ε̂/√(1-ᾱ_t), ε̂ before any clipping; like x_t."""
        output, _ = self._split(model_output, x_t, t)
        return -self._epsilon(output, x_t, t) / self.coefficients.at("noise", t, x_t)

    def step_table(self) -> Tensor:
        """All that each reverse step needs: float64 [T, 10], a row a step, columns STEP_COLUMNS.

            x_0  = clip(x0_from_x x + x0_from_output output)
            mean = mean_from_x0 x_0 + mean_from_x x + mean_from_output output
            x   <- mean + sigma z

        sigma is 0 where no noise is added, and where the variance is learned: then it is
        noise_gate exp(v/2) ("learned"), or with v between log_variance_min and log_variance_max.
        Raises ValueError as `p_mean_variance` does.
        """
        self._check_signal()
        return torch.stack([self.coefficients[name] for name in STEP_COLUMNS], dim=1)

    # ---- losses and the bound

    def training_losses(
        self,
        model: Model,
        x_0: Tensor,
        t: Tensor,
        noise: Tensor,
        kind: Literal["simple", "vlb", "rescaled_vlb", "hybrid", "min_snr"] = "simple",
        *,
        vlb_weight: float | None = None,
        snr_cap: float = 5.0,
        x_t: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Loss of model(x_t, timesteps) at x_t = q_sample(x_0, t, noise), for each image.

        simple        mse: mean squared error to the prediction's target; L_simple for "epsilon"
        vlb           vb: `vb_term` without clipping, in bits per dimension
        rescaled_vlb  T vb: an unbiased estimate of the whole sum when t is uniform
        hybrid        mse + vlb_weight vb, the mean in vb detached so that vb trains the variance
                      only; vlb_weight None = T/1000 (OpenAI). Just mse if the variance is fixed.
        min_snr       mse times `min_snr_weight(snr_cap)` (Hang et al. 2023)

        x_t: q_sample(x_0, t, noise) where the caller has it already (`ops.q_sample` makes it
        together with the noise).
        Returns "loss" [B] and, where they are part of it, "mse" [B] and "vb" [B].
        Raises ValueError for another kind.
        """
        _choice("kind", kind, LOSSES)
        if x_t is None:
            x_t = self.q_sample(x_0, t, noise)
        else:
            self._check(x_0, t, noise=noise, x_t=x_t)
        model_output = model(x_t, self.model_timesteps(t))
        output, values = self._split(model_output, x_t, t)
        if kind in ("vlb", "rescaled_vlb"):
            vb = self.vb_term(model_output, x_0, x_t, t, clip=False)
            return {"loss": vb * self.num_steps if kind == "rescaled_vlb" else vb, "vb": vb}
        mse = _mean((self.target(x_0, x_t, t, noise) - output) ** 2)
        if kind == "min_snr":
            return {"loss": self.min_snr_weight(snr_cap).to(mse)[t] * mse, "mse": mse}
        if kind == "simple" or values is None:
            return {"loss": mse, "mse": mse}
        frozen = torch.cat([output.detach(), values], dim=1)
        vb = self.vb_term(frozen, x_0, x_t, t, clip=False)
        weight = self.num_steps / 1000 if vlb_weight is None else vlb_weight
        return {"loss": mse + weight * vb, "mse": mse, "vb": vb}

    def vb_term(
        self,
        model_output: Tensor,
        x_0: Tensor,
        x_t: Tensor,
        t: Tensor,
        *,
        decoder: Literal["tanh", "erf"] = "tanh",
        clip: bool = True,
    ) -> Tensor:
        """The bound's term at t in bits per dimension: [B].

        KL(q(x_{t-1}|x_t,x_0) ‖ p(x_{t-1}|x_t)), or at t = 0 -log p(x_0|x_1) with the discretised
        Gaussian of `gaussian`.  x_0 are images in [-1, 1].  clip applies the diffusion's clip to
        x̂_0, as an evaluation does and a training loss does not.
        """
        self._check(x_t, t, x_0=x_0)
        p = self._predict(model_output, x_t, t, self.clip if clip else None)
        return torch.where(t == 0, self.decoder_bpd(p, x_0, decoder), self.kl_bpd(p, x_0, x_t, t))

    def kl_bpd(self, p: Prediction, x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """KL(q(x_{t-1}|x_t,x_0) ‖ p(x_{t-1}|x_t)) in bits per dimension, for t >= 1: [B]."""
        mean, _, log_variance = self.q_posterior(x_0, x_t, t)
        return _mean(normal_kl(mean, log_variance, p.mean, p.log_variance)) / math.log(2)

    def decoder_bpd(
        self, p: Prediction, x_0: Tensor, decoder: Literal["tanh", "erf"] = "tanh"
    ) -> Tensor:
        """-log p(x_0|x_1) in bits per dimension, for the prediction at t = 0: [B]."""
        bins = discretized_gaussian_log_likelihood(x_0, p.mean, 0.5 * p.log_variance, decoder)
        return -_mean(bins) / math.log(2)

    def prior_bpd(self, x_0: Tensor) -> Tensor:
        """KL(q(x_T | x_0) ‖ N(0, I)) in bits per dimension: [B]."""
        t = torch.full((len(x_0),), self.num_steps - 1, device=x_0.device)
        mean, _, log_variance = self.q_mean_variance(x_0, t)
        return _mean(normal_kl(mean, log_variance, 0.0, 0.0)) / math.log(2)

    @property
    def kl_weight_x0(self) -> Tensor:
        """Design I, float64 [T]: KL = weight ‖x̂_0 - x_0‖² + what the two variances alone cost.

        It is μ̃'s coefficient of x_0, squared, over 2 σ_t²: ½ (SNR_{t-1} - SNR_t) β̃_t/σ_t².
        Index 0 has no KL; its weight is that of the decoder's Gaussian.
        Raises ValueError if the variance is learned.
        """
        if self.learns_variance:
            raise ValueError(f"expected a fixed variance for a fixed weight, got {self.variance!r}")
        return self.schedule.posterior_mean_coef1**2 / (2 * self.coefficients["log_variance"].exp())

    @property
    def kl_weight_epsilon(self) -> Tensor:
        """Design II, float64 [T]: β_t²/(2 σ_t² α_t (1-ᾱ_t)), the weight of ‖ε̂ - ε‖² in the KL.

        Raises ValueError if the variance is learned.
        """
        # x̂_0 - x_0 = √(1/ᾱ_t - 1) (ε - ε̂)
        return self.kl_weight_x0 * self.schedule.sqrt_recipm1_alphas_cumprod**2

    def min_snr_weight(self, snr_cap: float = 5.0) -> Tensor:
        """Weight of mse, float64 [T]: min(SNR_t, cap) ‖x̂_0 - x_0‖² in the prediction's terms.

        epsilon min(SNR, cap)/SNR, sample min(SNR, cap), v_prediction min(SNR, cap)/(SNR+1).
        Raises ValueError for "previous_sample", whose error has no such form.
        """
        snr = self.schedule.snr
        if self.prediction == "epsilon":
            return (snr_cap / snr).clamp(max=1)
        if self.prediction == "previous_sample":
            raise ValueError("expected epsilon, sample or v_prediction, got 'previous_sample'")
        capped = snr.clamp(max=snr_cap)
        return capped if self.prediction == "sample" else capped / (snr + 1)

    # ---- from output to prediction

    def _predict(
        self, model_output: Tensor, x_t: Tensor, t: Tensor, clip: float | None
    ) -> Prediction:
        self._check_signal()
        output, values = self._split(model_output, x_t, t)
        raw = (
            self.coefficients.at("x0_from_x", t, x_t) * x_t
            + self.coefficients.at("x0_from_output", t, x_t) * output
        )
        epsilon = self._epsilon(output, x_t, t)
        x_0 = raw
        if clip is not None:
            x_0 = raw.clamp(-clip, clip)
            epsilon = epsilon + self.coefficients.at("root_snr", t, x_t) * (raw - x_0)
        if self.prediction == "previous_sample":
            mean = output
        else:
            mean = (
                self.coefficients.at("coef1", t, x_t) * x_0
                + self.coefficients.at("coef2", t, x_t) * x_t
            )
        variance, log_variance = self._variance(values, x_t, t)
        return Prediction(mean, variance, log_variance, x_0, epsilon)

    def _variance(self, values: Tensor | None, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """σ_t² and its logarithm, like x_t; values is the second half of the output or None."""
        if values is None:
            return (
                self.coefficients.at("variance", t, x_t).expand(x_t.shape),
                self.coefficients.at("log_variance", t, x_t).expand(x_t.shape),
            )
        if self.variance == "learned_range":
            share = (values + 1) / 2
            low, high = (
                self.coefficients.at(f"log_variance_{end}", t, x_t) for end in ("min", "max")
            )
            values = share * high + (1 - share) * low
        return values.exp(), values

    def _epsilon(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The noise that the output stands for, before clipping."""
        if self.prediction == "epsilon":
            return output
        return (
            self.coefficients.at("eps_from_x", t, x_t) * x_t
            + self.coefficients.at("eps_from_output", t, x_t) * output
        )

    def target(self, x_0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """What the output should be."""
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "sample":
            return x_0
        if self.prediction == "v_prediction":
            return (
                self.coefficients.at("signal", t, x_0) * noise
                - self.coefficients.at("noise", t, x_0) * x_0
            )
        return self.q_posterior(x_0, x_t, t)[0]

    def _split(self, model_output: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
        """The output for the mean, and for the variance where that is learned."""
        self._check(x_t, t)
        expected = list(x_t.shape)
        expected[1] *= 2 if self.learns_variance else 1
        if list(model_output.shape) != expected:
            raise ValueError(
                f"expected a model output of shape {expected} for x_t {list(x_t.shape)} and "
                f"variance {self.variance!r}, got {list(model_output.shape)}"
            )
        if not self.learns_variance:
            return model_output, None
        output, values = model_output.chunk(2, dim=1)
        return output, values

    # ---- checks

    def _check(self, x: Tensor, t: Tensor, **like_x: Tensor) -> None:
        """x floating point [B, C, ...], t int64 [B] in [0, T), the others of x's shape."""
        if not x.is_floating_point() or x.ndim < 2:
            raise ValueError(
                f"expected images of floating point [B, C, ...], got {x.dtype} {list(x.shape)}"
            )
        if t.dtype != torch.int64 or t.shape != x.shape[:1]:
            raise ValueError(
                f"expected t of int64 [{len(x)}], got {t.dtype} {list(t.shape)} "
                f"for images {list(x.shape)}"
            )
        for name, tensor in like_x.items():
            if tensor.shape != x.shape:
                raise ValueError(
                    f"expected {name} of shape {list(x.shape)}, got {list(tensor.shape)}"
                )
        readable = t.device.type == "cpu" and not torch.compiler.is_compiling()
        if readable and t.numel() and not 0 <= int(t.min()) <= int(t.max()) < self.num_steps:
            raise ValueError(
                f"expected t in [0, {self.num_steps}), got {int(t.min())} to {int(t.max())}"
            )

    def _check_signal(self) -> None:
        if self._no_signal:
            raise ValueError(
                "expected prediction 'sample' or 'v_prediction' for a schedule that ends with "
                "alphas_cumprod = 0, got 'epsilon', which cannot give x_0 there"
            )

    @cached_property
    def _no_signal(self) -> bool:
        return self.prediction == "epsilon" and bool((self.schedule.alphas_cumprod == 0).any())


def _mean(values: Tensor) -> Tensor:
    """Mean over all but the first dimension: [B]."""
    return values.flatten(1).mean(1)


def _choice(what: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"expected {what} in {', '.join(choices)}, got {value!r}")
