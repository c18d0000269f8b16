"""What a network does on data, at every timestep, measured once and kept beside the model.

    ε²[t]   = E ‖ε̂(x_t, t)‖² / D            Γ of Bao et al. 2022 (Analytic-DPM) times 1-ᾱ_t
    x_0²[t] = E ‖x̂_0(x_t, t) - x_0‖² / D    the terms of the bound (Watson et al. 2021)

over images x_0, x_t ~ q(x_t | x_0), D the numbers of an image. x̂_0 is bounded as in the chain, ε̂ is
as the network gives it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from fastddpm import atomic, ops
from fastddpm.diffusion import GaussianDiffusion
from fastddpm.noise import Purpose
from fastddpm.sampler.call import NetworkCall

# Images that run at once where nobody says how many.
AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class Measured:
    """timesteps int64 [T], the original ones, ascending; epsilon_square and x_0_error float64 [T]:
    see above. images: over how many the means are.

    ``save`` and ``load`` keep it in a JSON file.
    """

    timesteps: Tensor
    epsilon_square: Tensor
    x_0_error: Tensor
    images: int

    def at(self, timesteps: Tensor) -> Measured:
        """Of some of the timesteps, int64 [S]; ValueError for one that was not measured."""
        places = {t: k for k, t in enumerate(self.timesteps.tolist())}
        missing = [t for t in timesteps.tolist() if t not in places]
        if missing:
            raise ValueError(f"timestep {missing[0]} was not measured")
        rows = [places[t] for t in timesteps.tolist()]
        return Measured(timesteps, self.epsilon_square[rows], self.x_0_error[rows], self.images)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the file, whole or not at all."""
        text = json.dumps(
            {
                "images": self.images,
                "timesteps": self.timesteps.tolist(),
                "epsilon_square": self.epsilon_square.tolist(),
                "x_0_error": self.x_0_error.tolist(),
            }
        )
        with atomic.replacing(Path(path)) as partial:
            partial.write_text(text + "\n")

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Measured:
        """Read what ``save`` wrote; ValueError for anything else."""
        try:
            held = json.loads(Path(path).read_text())
            timesteps = torch.tensor(held["timesteps"], dtype=torch.int64)
            squares, errors = (
                torch.tensor(held[name], dtype=torch.float64)
                for name in ("epsilon_square", "x_0_error")
            )
            images = int(held["images"])
        except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise ValueError(f"{path} holds no measurement of a model ({error})") from error
        sound = all(c.shape == timesteps.shape and c.isfinite().all() for c in (squares, errors))
        if timesteps.ndim != 1 or not sound:
            raise ValueError(f"{path} holds no measurement of a model (numbers of one length)")
        return cls(timesteps, squares, errors, images)


def measure(
    network: NetworkCall,
    diffusion: GaussianDiffusion,
    images: Tensor,
    seed: int,
    labels: Tensor | None,
    progress: Callable[[int, int], None] | None,
    batch_size: int = AT_ONCE,
) -> Measured:
    """images: float32 [N, C, H, W], N >= 1, each noised once for every timestep, under FORWARD with
    its number for a sample index. labels: [N, ...] or None. progress: (timesteps done, T).
    batch_size: the most images to run at once."""
    if not len(images):
        raise ValueError("images must hold at least one image")
    T, count = diffusion.num_steps, len(images)
    squares, errors = torch.zeros(2, T, dtype=torch.float64).unbind()
    for i in range(T):
        parts = [
            _squares(network, diffusion, images, i, seed, labels, slice(k, k + batch_size))
            for k in range(0, count, batch_size)
        ]
        squares[i], errors[i] = (torch.cat(sums).mean() for sums in zip(*parts, strict=True))
        if progress is not None:
            progress(i + 1, T)
    return Measured(diffusion.schedule.timesteps, squares, errors, count)


def _squares(
    network: NetworkCall,
    diffusion: GaussianDiffusion,
    images: Tensor,
    i: int,
    seed: int,
    labels: Tensor | None,
    batch: slice,
) -> tuple[Tensor, Tensor]:
    """‖ε̂‖²/D and ‖x̂_0 - x_0‖²/D of each image of a batch at step i, float64 [b]."""
    x_0, device = images[batch], images.device
    t = torch.full((len(x_0),), i, dtype=torch.int64, device=device)
    indices = batch.start + torch.arange(len(x_0), device=device)
    timestep = int(diffusion.schedule.timesteps[i])
    z = ops.normal(seed, indices, timestep, tuple(images.shape[1:]), Purpose.FORWARD)
    x_t = diffusion.q_sample(x_0, t, z)
    rows = None if labels is None else labels[batch]
    output = network(x_t, diffusion.model_timesteps(t), rows)
    epsilon = diffusion.score(output, x_t, t) * diffusion.coefficients.at("noise", t, x_t)
    error = diffusion.p_mean_variance(output, x_t, t).x_0 - x_0
    square, error = ((v.double() ** 2).flatten(1).mean(1).cpu() for v in (epsilon, error))
    return square, error
