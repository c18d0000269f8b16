"""The bound's terms from a network's output, in bits per dimension.

For t >= 1 both Gaussians of the divergence have the mean coef1 x_0 + coef2 x_t, one with the image,
the other with the network's estimate of it.  So one reduction gives both columns of a result:

    mse = ‖x̂_0 - x_0‖²/D
    vb  = (c_t + w_t mse)/ln 2     w_t = coef1²/(2 σ_t²)     c_t = ½ (r - 1 - log r), r = β̃_t/σ_t²

(Design I of fastddpm/diffusion.py.)  Where σ_t² differs from pixel to pixel, or the network gives
the mean by itself, the divergence is taken pixel by pixel, in float64: the difference of the two
means cancels.  t = 0 is the decoder's term.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from fastddpm.diffusion import GaussianDiffusion

Decoder = Literal["tanh", "erf"]


class Terms:
    """The terms of one diffusion. decoder: see ``fastddpm.gaussian``."""

    def __init__(self, diffusion: GaussianDiffusion, decoder: Decoder) -> None:
        self._diffusion = diffusion
        self._decoder = decoder
        # Whether the divergence is c_t + w_t mse.
        self._weighted = not (
            diffusion.learns_variance or diffusion.prediction == "previous_sample"
        )
        if self._weighted:
            ratio = (
                diffusion.coefficients["posterior_log_variance"]
                - diffusion.coefficients["log_variance"]
            )
            self._cost = 0.5 * (torch.expm1(ratio) - ratio)
            self._weight = diffusion.kl_weight_x0

    def __call__(
        self, output: Tensor, x_0: Tensor, x_t: Tensor, t: Tensor
    ) -> tuple[Tensor, Tensor]:
        """vb and mse of rows, float64 [R] on the host.

        output: [R, C or 2C, ...], x_0, x_t [R, C, ...], t int64 [R] on the host.
        """
        if x_t.device.type == "mps":  # It has no float64.
            output, x_0, x_t = (v.cpu() for v in (output, x_0, x_t))
        there = t.to(x_t.device)
        if not self._weighted:
            output, x_0, x_t = (v.double() for v in (output, x_0, x_t))
        p = self._diffusion.p_mean_variance(output, x_t, there)
        mse = _mean_square(p.x_0 - x_0).cpu()
        if self._weighted:
            vb = (self._cost[t] + self._weight[t] * mse) / math.log(2)
        else:
            vb = self._diffusion.kl_bpd(p, x_0, x_t, there).cpu()
        last = (t == 0).nonzero()[:, 0]
        if len(last):
            vb[last] = self._decoded(*(v[last.to(v.device)] for v in (output, x_0, x_t, there)))
        return vb, mse

    def _decoded(self, output: Tensor, x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The decoder's term, in float64: the tanh CDF's tails are differences of near numbers."""
        p = self._diffusion.p_mean_variance(output.double(), x_t.double(), t)
        return self._diffusion.decoder_bpd(p, x_0.double(), self._decoder).cpu()


def _mean_square(error: Tensor) -> Tensor:
    """Over all but the first dimension, float64 [R]."""
    norm: Tensor = torch.linalg.vector_norm(error.flatten(1), dim=1, dtype=torch.float64)
    return norm.square() / math.prod(error.shape[1:])
