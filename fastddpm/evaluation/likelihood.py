"""Bits per dimension in one call: the bound of a model on images, term by term (bound.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor

from fastddpm.diffusion import GaussianDiffusion
from fastddpm.evaluation.bits import BitsPerDim
from fastddpm.evaluation.bound import Bound
from fastddpm.evaluation.terms import Decoder
from fastddpm.sampler.arguments import Array, Indices, Labels
from fastddpm.sampler.model import Model
from fastddpm.sampler.noise_source import CallerNoise
from fastddpm.sampler.runs import Progress

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Settings(TypedDict, total=False):
    """How a bound is computed; see ``Bound``."""

    engine: str
    device: torch.device | str | None
    dtype: torch.dtype | None
    decoder: Decoder
    batch_size: int | None
    tf32: bool
    threads: int | None
    weights: str
    memory: str


def bits_per_dim(
    unet: Model,
    diffusion: GaussianDiffusion,
    images: Tensor | Array,
    seed: int = 0,
    *,
    indices: Indices | None = None,
    labels: Labels | None = None,
    noise: CallerNoise | None = None,
    timesteps: int | None = None,
    progress: Progress | None = None,
    **settings: Unpack[Settings],
) -> BitsPerDim:
    """Every term of the bound on each image, in bits per dimension.

    Args:
        unet: fastddpm.UNet or any callable (x, t) -> output, as for ``fastddpm.Sampler``.
        images: [B, C, H, W], uint8, or floating in [-1, 1], or within the diffusion's ``clip``
            (float64: the terms are computed in float64, the network in its own dtype).
        seed: 0 to 2^64 - 1. The terms of image i depend on (seed, indices[i]) and the image alone,
            not on the batch, its order or its place.
        indices: int64 [B], the images' sample indices; 0, ..., B-1 by default.
        labels: one class for all images, or one for each; needs a conditional model.
        noise: instead of the seed, ``fn(t, shape) -> noise [B, C, H, W]``, called once for each
            step t = T-1, ..., 0, as OpenAI's loop draws.
        timesteps: K of them for each image instead of all T, and step 0: the total is then an
            unbiased estimate (pairs.py), from K + 1 calls of the network.
        progress: called with (terms done, terms in all).
        settings: engine, device, dtype, decoder, batch_size, ...; see ``Bound``.

    Returns:
        BitsPerDim(total [B], prior [B], vb [B, T], mse [B, T]), float32 on the host, or float64
        for images of float64. Sums are float64.

    Raises:
        ValueError: arguments that do not fit together.
        FloatingPointError: NaN or Inf in a term; names the timestep.

    Terms need memory for B x T of them; ``DataSetBound`` keeps sums only.
    """
    return Bound(unet, diffusion, **settings)(
        images,
        seed,
        indices=indices,
        labels=labels,
        noise=noise,
        timesteps=timesteps,
        progress=progress,
    )
