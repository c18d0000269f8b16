"""Coefficients: every number that a diffusion's equations take from its schedule, by name and step.

Float64 [T] each, computed once; rows are gathered in the precision and on the device of the images
they meet.  The names follow the equations of `diffusion`, where the meaning of `prediction`,
`variance` and the other settings is told.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from fastddpm.kernels.ancestral_step.reference import LEARNED_VARIANCES
from fastddpm.schedule import NoiseSchedule


@dataclass(frozen=True, eq=False)
class Coefficients:
    """The tables of one schedule for one meaning of the network's output."""

    schedule: NoiseSchedule
    prediction: str
    variance: str
    last_step_noise: str
    timestep_scale: float | None
    # One float64 table rounded and copied for each (name, device, dtype) asked for.
    _copies: dict[tuple[str, torch.device, torch.dtype], Tensor] = field(
        default_factory=dict, init=False, repr=False
    )

    def __getitem__(self, name: str) -> Tensor:
        """The whole table, float64 [T] on the CPU."""
        return self._tables[name]

    def at(self, name: str, t: Tensor, x: Tensor) -> Tensor:
        """Rows t [B] of a table in x's precision, [B, 1, ...] to broadcast over x [B, C, ...]."""
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        return self.copy(name, x.device, dtype)[t].reshape(-1, *[1] * (x.ndim - 1))

    def copy(self, name: str, device: torch.device, dtype: torch.dtype) -> Tensor:
        """A table [T] on a device in a precision; made once."""
        key = (name, device, dtype)
        if key not in self._copies:
            self._copies[key] = self._tables[name].to(device, dtype)
        return self._copies[key]

    @cached_property
    def _tables(self) -> dict[str, Tensor]:
        return self._process() | self._mean() | self._spread()

    def _process(self) -> dict[str, Tensor]:
        """The forward process and its posterior, whatever the network predicts."""
        s = self.schedule
        alphas_cumprod_next = torch.cat([s.alphas_cumprod[1:], torch.zeros_like(s.betas[:1])])
        return {
            "signal": s.sqrt_alphas_cumprod,
            "signal_prev": s.alphas_cumprod_prev.sqrt(),
            "signal_next": alphas_cumprod_next.sqrt(),
            "noise_next": (1 - alphas_cumprod_next).sqrt(),
            "noise": s.sqrt_one_minus_alphas_cumprod,
            "root_snr": s.snr.sqrt(),
            "noise_variance": 1 - s.alphas_cumprod,
            "noise_variance_prev": 1 - s.alphas_cumprod_prev,
            "noise_log_variance": s.log_one_minus_alphas_cumprod,
            "coef1": s.posterior_mean_coef1,
            "coef2": s.posterior_mean_coef2,
            "posterior_variance": s.posterior_variance,
            "posterior_log_variance": s.posterior_log_variance_clipped,
            # in float32, as OpenAI's networks have seen them
            "timestep": (s.timesteps.float() * (self.timestep_scale or 1.0)).double(),
        }

    def _mean(self) -> dict[str, Tensor]:
        """How x̂_0, ε̂ and the mean are made of x_t and the output."""
        s = self.schedule
        zero, one = torch.zeros_like(s.betas), torch.ones_like(s.betas)
        by_output = self.prediction == "previous_sample"
        if self.prediction == "epsilon":
            from_x, from_output = s.sqrt_recip_alphas_cumprod, -s.sqrt_recipm1_alphas_cumprod
        elif self.prediction == "sample":
            from_x, from_output = zero, one
        elif self.prediction == "v_prediction":
            from_x, from_output = s.sqrt_alphas_cumprod, -s.sqrt_one_minus_alphas_cumprod
        else:
            from_output = s.posterior_mean_coef1.reciprocal()
            from_x = -s.posterior_mean_coef2 / s.posterior_mean_coef1
        return {
            "x0_from_x": from_x,
            "x0_from_output": from_output,
            "mean_from_x0": zero if by_output else s.posterior_mean_coef1,
            "mean_from_x": zero if by_output else s.posterior_mean_coef2,
            "mean_from_output": one if by_output else zero,
            # ε = (x_t - √ᾱ_t x_0)/√(1-ᾱ_t)
            "eps_from_x": (1 - s.sqrt_alphas_cumprod * from_x) / s.sqrt_one_minus_alphas_cumprod,
            "eps_from_output": -s.snr.sqrt() * from_output,
        }

    def _spread(self) -> dict[str, Tensor]:
        """σ_t², its logarithm and bounds, and where noise is added."""
        s = self.schedule
        low, high = s.posterior_log_variance_clipped, s.betas.log()
        large = torch.cat([low[:1].exp(), s.betas[1:]])
        gate = torch.ones_like(s.betas)
        gate[0] = 0
        if self.last_step_noise == "diffusers":
            low, large = s.posterior_variance.clamp(min=1e-20).log(), s.betas
            gate[0] = float(s.timesteps[0] > 0)
        is_large = self.variance == "fixed_large"
        log_variance = large.log() if is_large else low
        return {
            "variance": large if is_large else s.posterior_variance,
            "log_variance": log_variance,
            "log_variance_min": low,
            "log_variance_max": high,
            "noise_gate": gate,
            "sigma": 0 * gate
            if self.variance in LEARNED_VARIANCES
            else gate * (0.5 * log_variance).exp(),
        }
