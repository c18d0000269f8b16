"""The training loss of a batch, with its timesteps and noise drawn by counter.

    t ~ uniform{0, ..., T−1},  ε ~ N(0, I),  x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε
    L_simple = ‖ε − ε̂(x_t, t)‖² / dimensions, or another loss of GaussianDiffusion

(Ho et al. 2020, algorithm 1; the hybrid loss is Nichol and Dhariwal 2021, equation 16.)

Draw n of the run (step·B + position in the batch) is sample index n of the noise specification
(noise.py) with step word 0: purpose TIMESTEP for t, FORWARD for ε.  So both are functions of
(seed, n), whatever the micro-batches.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fastddpm import ops
from fastddpm.diffusion import GaussianDiffusion
from fastddpm.noise import seed_tensor, timesteps_draw

LossKind = Literal["simple", "vlb", "rescaled_vlb", "hybrid", "min_snr"]
Network = Callable[[Tensor, Tensor, Tensor | None], Tensor]

# Held-out images take sample indices from here on, beyond any draw of a run.
HELD_OUT = 1 << 62


@dataclass(frozen=True)
class Batch:
    """x_0 [B, C, H, W] in [−1, 1], step indices t int64 [B], noise like x_0, labels int64 [B], and
    x_t like x_0 where it was made with the noise."""

    x_0: Tensor
    t: Tensor
    noise: Tensor
    labels: Tensor | None
    x_t: Tensor | None = None

    def split(self, parts: int) -> list["Batch"]:
        """The batch in `parts` micro-batches, as even as they come."""
        columns = (self.x_0, self.t, self.noise, self.labels, self.x_t)
        pieces = [[None] * parts if x is None else torch.tensor_split(x, parts) for x in columns]
        return [Batch(*piece) for piece in zip(*pieces, strict=True)]


def draw_batch(
    seed: int,
    first: int,
    x_0: Tensor,
    labels: Tensor | None,
    diffusion: GaussianDiffusion,
    backend: str = "auto",
) -> Batch:
    """The batch whose images are the draws `first`, `first` + 1, ...; `backend` is that of ops."""
    draws = torch.arange(first, first + len(x_0), device=x_0.device)
    t = timesteps_draw(seed, draws, 0, diffusion.num_steps)
    return _noised(seed, draws, x_0, t, labels, diffusion, backend)


def held_out_batch(
    seed: int,
    first: int,
    total: int,
    x_0: Tensor,
    labels: Tensor | None,
    diffusion: GaussianDiffusion,
    backend: str = "auto",
) -> Batch:
    """A fixed batch for validation: image i of `total` always gets t = ⌊(i + ½) T / total⌋."""
    position = torch.arange(first, first + len(x_0), device=x_0.device)
    t = (2 * position + 1) * diffusion.num_steps // (2 * total)
    return _noised(seed, HELD_OUT + position, x_0, t, labels, diffusion, backend)


def _noised(
    seed: int,
    indices: Tensor,
    x_0: Tensor,
    t: Tensor,
    labels: Tensor | None,
    diffusion: GaussianDiffusion,
    backend: str,
) -> Batch:
    """The batch with the noise of the samples `indices`, in one pass over memory on a GPU."""
    signal, spread = (
        diffusion.coefficients.copy(name, t.device, torch.float32) for name in ("signal", "noise")
    )
    table = torch.stack([signal, spread], dim=1)
    key, step = seed_tensor(seed, t.device), t.new_zeros(1)
    x_t, noise = ops.q_sample(x_0, t, table, key, indices, step, backend)
    return Batch(x_0, t, noise, labels, x_t)


def losses(
    network: Network,
    diffusion: GaussianDiffusion,
    batch: Batch,
    kind: LossKind,
    vlb_weight: float | None = None,
) -> Tensor:
    """The loss of every image, [B], differentiable in the network's parameters.

    `kind` and `vlb_weight` are those of GaussianDiffusion.training_losses.
    """

    def model(x_t: Tensor, t: Tensor) -> Tensor:
        return network(x_t, t, batch.labels)

    return diffusion.training_losses(
        model, batch.x_0, batch.t, batch.noise, kind, vlb_weight=vlb_weight, x_t=batch.x_t
    )["loss"]
