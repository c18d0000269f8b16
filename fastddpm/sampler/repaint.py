"""Inpainting by RePaint (Lugmayr et al. 2022, algorithm 1): the chain draws what is not known.

    x_{t-1}^known   = √ᾱ_{t-1} x_0 + √(1-ᾱ_{t-1}) z             equation 8a
    x_{t-1}^unknown = mean(x_t) + σ_t z                          equation 8b
    x_{t-1}         = m x^known + (1-m) x^unknown                equation 8c
    x_{t-1+j}       = √(ᾱ_{t-1+j}/ᾱ_{t-1}) x_{t-1} + √(1 - ᾱ_{t-1+j}/ᾱ_{t-1}) z      a jump back

A jump follows a step, and both are affine with noise of their own, so one row of the table is both:
r = √(ᾱ_{t-1+j}/ᾱ_{t-1}) scales the mean, and the noise is √(r² σ² + 1 - r²) z. What is known then
is noised to the level that the row leads to. A pixel is known or not, so one z serves both: of the
two sums it goes into, one is kept. The network is called once a row, none of it to go back.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fastddpm import ops
from fastddpm.diffusion import GaussianDiffusion
from fastddpm.kernels.ancestral_step.reference import STEP_COLUMNS
from fastddpm.sampler.methods import Method, affine_rows, ancestral

# Steps of a walk, each of them a row of the table; the noise counter has words for 2^24.
MOST_STEPS = 1_000_000


def repaint(
    diffusion: GaussianDiffusion, clip: float | None, jump_length: int, resamplings: int
) -> tuple[Method, Tensor]:
    """The chain with its jumps, and the rows of what is known, float64 [S, 10].

    Jumps lead ``jump_length`` steps back from every level that is a multiple of it, 0 included,
    so often that each stretch is walked ``resamplings`` times. A network that learns its variance
    is taken at β̃: the jump's share of the noise is not in what it gives.

    Raises ValueError for numbers below 1, and a walk of more than MOST_STEPS.
    """
    if jump_length < 1 or resamplings < 1:
        raise ValueError(
            "expected jump_length and resamplings of at least 1, got "
            f"{jump_length} and {resamplings}"
        )
    length = walk_length(diffusion.num_steps, jump_length, resamplings)
    if length > MOST_STEPS:
        raise ValueError(
            f"expected a walk of at most {MOST_STEPS} steps, got {length}: {diffusion.num_steps} "
            f"with jump_length {jump_length} and resamplings {resamplings}"
        )
    own = diffusion.coefficients["sigma"]
    fixed_sigma = diffusion.schedule.posterior_variance.sqrt() if diffusion.learns_variance else own
    steps = walk(diffusion.num_steps, jump_length, resamplings)
    index, reached = (torch.tensor(column) for column in zip(*steps, strict=True))
    levels = torch.cat([torch.ones(1, dtype=torch.float64), diffusion.schedule.alphas_cumprod])
    share = levels[reached] / levels[index]  # r²: levels[k] is ᾱ of x_k, and step k leads to x_k
    sigma = (share * fixed_sigma[index] ** 2 + 1 - share).sqrt()
    schedule = diffusion.schedule
    from_x0, from_x = schedule.posterior_mean_coef1[index], schedule.posterior_mean_coef2[index]
    walked, scale = diffusion.step_table()[index], share.sqrt()
    rows = affine_rows(walked, scale * from_x0, scale * from_x, sigma)
    known = _known_rows(levels[reached])
    method = ancestral(diffusion, clip)
    table = replace(
        method,
        rows=rows.flip(0),
        timesteps=method.timesteps[index].flip(0),
        network_t=method.network_t[index].flip(0),
        # A timestep comes up several times, with other noise each time.
        counters=torch.arange(len(rows)),
        prediction="epsilon",
        variance="learned_range" if diffusion.learns_variance else "fixed_small",
    )
    return table, known.flip(0)


def walk(num_steps: int, jump_length: int, resamplings: int) -> list[tuple[int, int]]:
    """Of each step of the chain in order: its index t - 1, and the level that is reached after it
    and its jump, if there is one."""
    jumps = dict.fromkeys(_landings(num_steps, jump_length), resamplings - 1)
    steps = []
    level = num_steps
    while level > 0:
        index = level - 1
        level = index
        if jumps.get(index, 0) > 0:
            jumps[index] -= 1
            level = index + jump_length
        steps.append((index, level))
    return steps


def walk_length(num_steps: int, jump_length: int, resamplings: int) -> int:
    """Steps of ``walk``: a jump of j has j more of them after it."""
    jumps = len(_landings(num_steps, jump_length)) * (resamplings - 1)
    return num_steps + jumps * jump_length


class Known:
    """The known part of images [B, C, H, W] in the chain.

    rows: of ``repaint``, float32 on the device.
    """

    def __init__(self, rows: Tensor, shape: tuple[int, ...], backend: str) -> None:
        self._rows = rows
        self._backend = backend
        self._images = torch.zeros(shape, dtype=torch.float32, device=rows.device)
        self._mask = torch.zeros(shape, dtype=torch.bool, device=rows.device)
        self._noisy = torch.zeros_like(self._images)

    def load(self, images: Tensor, mask: Tensor) -> None:
        """The present call's x_0, and bool, where it is known; of the shape."""
        # What is not known takes part in no image, but a NaN of it in the step would stay: the step
        # is one in place, and 0 NaN is no 0. So would one of an earlier call.
        self._images.copy_(torch.where(mask, images, 0))
        self._noisy.zero_()
        self._mask.copy_(mask)

    def keep(self, x: Tensor, noise: Tensor | ops.Draw, i: Tensor) -> None:
        """Put what is known, with the step's own noise, in its place in x."""
        ops.ancestral_step_(
            *(self._noisy, self._images, noise, self._rows, i),
            prediction="sample",
            variance="fixed_small",
            clip=None,
            backend=self._backend,
        )
        ops.host_call_(_put, x, self._noisy, self._mask)


def _landings(num_steps: int, jump_length: int) -> range:
    """The levels that jumps lead back from."""
    return range(0, num_steps - jump_length, jump_length)


def _put(x: Tensor, known: Tensor, mask: Tensor) -> None:
    x.copy_(torch.where(mask, known, x))


def _known_rows(levels: Tensor) -> Tensor:
    """Rows that make √ᾱ x_0 + √(1-ᾱ) z of an "output" x_0, float64 [S, 10]."""
    columns = dict.fromkeys(STEP_COLUMNS, torch.zeros_like(levels)) | {
        "x0_from_output": torch.ones_like(levels),
        "mean_from_x0": levels.sqrt(),
        "sigma": (1 - levels).sqrt(),
    }
    return torch.stack([columns[name] for name in STEP_COLUMNS], dim=1)
