"""x_t = √ᾱ_t x_0 + √(1-ᾱ_t) ε for rows of images and timesteps, with ε by counter or a caller's.

By counter, ε of image i at a timestep is Purpose.FORWARD's normal of sample i at the original
timestep (fastddpm/noise.py): the same in every batch, order, chain of fewer steps and process.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastddpm import noise, ops
from fastddpm.diffusion import GaussianDiffusion
from fastddpm.noise import Purpose
from fastddpm.sampler.noise_source import GivenNoise

# x_0 [R, C, ...], t [R] and the rows' images [R], the last two on the host -> x_t
Noised = Callable[[Tensor, Tensor, Tensor], Tensor]


def by_counter(diffusion: GaussianDiffusion, seed: int, indices: Tensor, backend: str) -> Noised:
    """indices: int64 [B] on the host, the sample index of each image. backend: of ops."""

    def noised(x_0: Tensor, t: Tensor, image: Tensor) -> Tensor:
        device = x_0.device
        steps = diffusion.schedule.timesteps[t].to(device)
        rows, there = indices[image].to(device), t.to(device)
        if x_0.dtype != torch.float32:
            shape = tuple(x_0.shape[1:])
            z = ops.normal(seed, rows, steps, shape, Purpose.FORWARD, backend=backend)
            return diffusion.q_sample(x_0, there, z.to(x_0.dtype))
        signal, spread = (
            diffusion.coefficients.copy(name, device, torch.float32) for name in ("signal", "noise")
        )
        table = torch.stack([signal, spread], dim=1)
        key = noise.seed_tensor(seed, device)
        return ops.q_sample(x_0, there, table, key, rows, steps, backend)[0]

    return noised


def by_caller(diffusion: GaussianDiffusion, source: GivenNoise) -> Noised:
    """One draw for the whole batch at each timestep, t descending, as ``all_pairs`` lists them."""
    last: tuple[int, Tensor] | None = None

    def draw(t: int) -> Tensor:
        nonlocal last
        if last is None or last[0] != t:
            last = t, source.draw(t)
        return last[1]

    def noised(x_0: Tensor, t: Tensor, image: Tensor) -> Tensor:
        runs, counts = torch.unique_consecutive(t, return_counts=True)
        parts = torch.split(image, counts.tolist())
        pairs = zip(runs.tolist(), parts, strict=True)
        z = torch.cat([draw(step)[rows.to(x_0.device)] for step, rows in pairs])
        return diffusion.q_sample(x_0, t.to(x_0.device), z.to(x_0.dtype))

    return noised
