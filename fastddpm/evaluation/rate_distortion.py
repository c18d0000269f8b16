"""Rate against distortion: the chain as a progressive code (Ho et al. 2020, section 4.3, figure 5).

A receiver who holds x_{t+1} decodes the estimate x̂_0(x_{t+1}, t).  What it took to get there, the
divergences of all steps before it, is the rate; the estimate's error is the distortion:

    reverse step k = 1, ..., T     t = T - k
    rate_k       = prior + Σ_{s > t} vb_s           bits per dimension
    distortion_k = E ‖x̂_0 - x_0‖²/D                 of images in [-1, 1]
    rmse_k       = 127.5 √distortion_k              on the scale of bytes, 0 to 255

(x_{t+1} in Ho's count, where x_0 is the image: the network's input at step t here.)  At the last
reverse step the rate is L_1 + ... + L_T of Ho's table 2; L_0 more makes the image lossless.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from fastddpm import atomic
from fastddpm.diffusion import GaussianDiffusion
from fastddpm.evaluation.bound import Bound
from fastddpm.evaluation.data_set import DataSetBound, bound_of_data
from fastddpm.evaluation.likelihood import Settings
from fastddpm.sampler.arguments import Array, Labels
from fastddpm.sampler.model import Model

if TYPE_CHECKING:
    from typing_extensions import Unpack


class RateDistortion(NamedTuple):
    """float64 [T], entry k-1 of reverse step k: see above. The rate rises. The
    distortion falls in expectation; its estimate from few images or timesteps may rise between two.

    rate: bits per dimension so far. distortion: mean square error of images in [-1, 1], over
    images and pixels. rmse: its root on the scale of 0 to 255.
    """

    rate: Tensor
    distortion: Tensor
    rmse: Tensor

    @classmethod
    def of(cls, bound: DataSetBound) -> RateDistortion:
        """From the means over a data set; NaN from the first timestep on that no image drew."""
        vb, distortion = bound.vb.known().flip(0), bound.mse.known().flip(0)
        before = torch.cat([bound.prior.mean.reshape(1), vb[:-1]])
        return cls(before.cumsum(0), distortion, 127.5 * distortion.sqrt())

    @property
    def reverse_steps(self) -> Tensor:
        """1, ..., T, int64: T - t of each entry."""
        return torch.arange(1, len(self.rate) + 1)

    def save_csv(self, path: Path) -> None:
        """reverse_step, rate, distortion, rmse, a line a step; whole or not at all."""
        columns = (self.reverse_steps, *self)
        lines = ["reverse_step,rate_bits_per_dim,distortion_mse,rmse_0_to_255"]
        lines += [
            f"{step},{rate:.8g},{mse:.8g},{rmse:.8g}"
            for step, rate, mse, rmse in zip(*(c.tolist() for c in columns), strict=True)
        ]
        atomic.write(path, "\n".join(lines) + "\n")

    def save_plot(self, path: Path) -> None:
        """Figure 5: distortion and rate over the reverse steps, and one against the other."""
        # Not pyplot, whose backend and figures are the process's.
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 2.6), layout="constrained")
        steps, rate, rmse = self.reverse_steps, self.rate, self.rmse
        panels = (
            ("reverse step", steps, "distortion (RMSE, 0 to 255)", rmse),
            ("reverse step", steps, "rate (bits per dimension)", rate),
            ("rate (bits per dimension)", rate, "distortion (RMSE, 0 to 255)", rmse),
        )
        for axes, (x_name, x, y_name, y) in zip(figure.subplots(1, 3), panels, strict=True):
            axes.plot(x, y, color="black")
            axes.set(xlabel=x_name, ylabel=y_name, ylim=(0, None), xlim=(0, None))
            axes.grid(alpha=0.3)
        with atomic.replacing(path) as partial:
            figure.savefig(partial, format="png", dpi=110)


def rate_distortion(
    unet: Model,
    diffusion: GaussianDiffusion,
    images: Tensor | Array,
    seed: int = 0,
    *,
    labels: Labels | None = None,
    advance: Callable[[int], None] | None = None,
    **settings: Unpack[Settings],
) -> RateDistortion:
    """The curve of a model, averaged over images [N, C, H, W], in memory that N does not change.

    Arguments as ``bits_per_dim``'s; image i has sample index i. advance: called with the number of
    terms done since, of N x T.
    """
    bound = Bound(unet, diffusion, **settings)
    return RateDistortion.of(bound_of_data(bound, images, seed, labels=labels, advance=advance))
