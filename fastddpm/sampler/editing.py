"""Where a chain begins that does not begin with noise alone: at images.

    x_t = √ᾱ_t x_0 + √(1-ᾱ_t) z         then the reverse steps t, ..., 0

is SDEdit (Meng et al. 2022), "img2img": the smaller t, the closer the result to x_0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastddpm import ops
from fastddpm.noise import Purpose
from fastddpm.sampler.chain import Chain
from fastddpm.sampler.noise_source import GivenNoise, NoiseSource


def start_of(chain: Chain, timesteps: tuple[int, ...] | None, t: int) -> int:
    """The index of the step at which a chain over these timesteps begins for t of the whole chain:
    the last one not beyond it. ValueError if there is none."""
    steps = range(chain.num_steps) if timesteps is None else timesteps
    found = sum(step <= t for step in steps) - 1
    if t < 0 or found < 0 or (timesteps is None and t >= chain.num_steps):
        raise ValueError(
            f"t must be a step index, and the chain visits {steps[0]} to {steps[-1]}; got {t}"
        )
    return found


def noised(
    chain: Chain, images: Tensor, start: int, source: NoiseSource, seed: int, indices: Tensor
) -> Tensor:
    """x_t of images [B, C, H, W] at a step's level. The noise is the source's own if it is a
    caller's, asked for as that of x_T is; else the counter's, under FORWARD."""
    steps = torch.full((len(images),), start, dtype=torch.int64, device=images.device)
    if isinstance(source, GivenNoise):
        z = source.initial(chain.num_steps)
    else:
        step = int(chain.diffusion.schedule.timesteps[start])
        z = ops.normal(
            seed,
            indices.to(images.device),
            step,
            tuple(images.shape[1:]),
            Purpose.FORWARD,
            backend=chain.engine.backend,
        )
    return chain.diffusion.q_sample(images, steps, z)
