"""What both sides compute: the model's law of each step, given the state they share.

    state K-1   x_T of the respaced chain of K steps           p = N(0, I)
    state k     given state k+1                                p(x_{t-1} | x_t)
    pixels      given state 0                                  p(x_0 | x_1), discretised

Everything but the network's call is done image by image, on tensors of one shape: torch may sum or
round otherwise in a batch of another size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import repeat
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastddpm.codec.container import Header
from fastddpm.diffusion import GaussianDiffusion, Prediction
from fastddpm.gaussian import discretized_gaussian_log_likelihood

Network = Callable[[Tensor, Tensor], Tensor]

# Images that the network takes at once: the same for both sides, since an engine's results may
# depend on it, and few enough for its memory.
BATCH = 32
# Numbers of an image whose tables of 256 levels are made at once.
_ROWS = 8192


class Law(NamedTuple):
    """N(mean, sigma²) of one image's numbers, float32 [n]."""

    mean: Tensor
    sigma: Tensor

    def seen_from(self, other: Law) -> tuple[Tensor, Tensor]:
        """Δ and r of this law in the other's coordinates: x = mean + sigma z."""
        return (self.mean - other.mean) / other.sigma, (self.sigma / other.sigma) ** 2


class Process:
    """The respaced diffusion with its network; ``network(x [N, C, H, W], t [N])``."""

    def __init__(self, network: Network, diffusion: GaussianDiffusion) -> None:
        self.diffusion = diffusion
        self._network = network

    @property
    def steps(self) -> int:
        """K."""
        return self.diffusion.num_steps

    def predictions(self, x: Tensor, k: int) -> Iterator[Prediction]:
        """p given states k, x [N, C, H, W]: one prediction an image, each [1, C, H, W].

        Raises FloatingPointError where the network's output is not finite.
        """
        for batch in torch.split(x, BATCH):
            t = torch.full((len(batch),), k, dtype=torch.int64)
            output = self._network(batch, self.diffusion.model_timesteps(t)).contiguous()
            if not bool(output.isfinite().all()):
                timestep = int(self.diffusion.schedule.timesteps[k])
                raise FloatingPointError(
                    f"NaN or Inf in the network's output at timestep {timestep}"
                )
            for o, x_t in zip(torch.split(output, 1), torch.split(batch, 1), strict=True):
                yield self.diffusion.p_mean_variance(o, x_t, t[:1])

    def reverse(self, prediction: Prediction) -> Law:
        """p of the next state."""
        return _law(prediction.mean, prediction.log_variance)

    def laws(self, x: Tensor | None, k: int, header: Header) -> Iterator[Law]:
        """p of state k for every image, given the states k + 1, if there are any."""
        if x is not None:
            return map(self.reverse, self.predictions(x, k + 1))
        n = math.prod(header.shape)
        return repeat(Law(torch.zeros(n), torch.ones(n)), header.images)

    def posterior(self, x_0: Tensor, x_t: Tensor | None, k: int) -> Law:
        """q of state k given x_0 [1, C, H, W] and state k + 1, if there is one; the sender's."""
        if x_t is None:
            mean, _, log_variance = self.diffusion.q_mean_variance(x_0, torch.tensor([k]))
        else:
            mean, _, log_variance = self.diffusion.q_posterior(x_0, x_t, torch.tensor([k + 1]))
        return _law(mean, log_variance)


def _law(mean: Tensor, log_variance: Tensor) -> Law:
    # Contiguous, so that equal variances have equal roots: torch has several exp.
    return Law(mean.flatten(), (0.5 * log_variance.contiguous()).exp().flatten())


def pixel_laws(prediction: Prediction, decoder: str) -> Iterator[NDArray[np.float64]]:
    """p(x_0 | x_1) of every number of an image: float64 [rows, 256] for its rows in turn."""
    levels = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    mean = prediction.mean.flatten().double()
    log_scale = 0.5 * prediction.log_variance.flatten().double()
    for m, s in zip(torch.split(mean, _ROWS), torch.split(log_scale, _ROWS), strict=True):
        log_law = discretized_gaussian_log_likelihood(levels[None], m[:, None], s[:, None], decoder)
        yield log_law.exp().numpy()


def pixel_bits(prediction: Prediction, x_0: Tensor, decoder: str) -> float:
    """-log2 p(x_0 | x_1) of an image, x_0 in [-1, 1]."""
    mean, log_scale = prediction.mean.double(), 0.5 * prediction.log_variance.double()
    nats = discretized_gaussian_log_likelihood(x_0.double(), mean, log_scale, decoder).sum()
    return -float(nats) / math.log(2)


def cubic(T: int, steps: int) -> list[int]:
    """t_i = round((T-1) (i/(K-1))³), pushed apart where they meet: ascending positions of a chain.

    Dense at small t, so that steps tell about equally much. ValueError unless 1 <= steps <= T."""
    if not 1 <= steps <= T:
        raise ValueError(f"expected between 1 and T = {T} steps, got {steps}")
    return [max(i, round((T - 1) * (i / max(steps - 1, 1)) ** 3)) for i in range(steps)]
