"""Embeddings of the timestep: sinusoidal (Vaswani et al. 2017), Gaussian Fourier, learned.

Sinusoidal, with half = dim/2 and k = 0 … half−1:  angle_k = t · 10000^(−k / (half − freq_shift)),
rows [sin, cos] (Ho, freq_shift 1) or [cos, sin] (OpenAI, freq_shift 0). Always in float32.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastddpm.unet.config import UNetConfig

FOURIER_SCALE = 16.0


def sinusoidal_embedding(
    t: Tensor, dim: int, *, cos_first: bool = False, freq_shift: float = 1.0
) -> Tensor:
    """Sinusoidal embedding of timesteps.

    Args:
        t: [B], integer or floating, the timestep in original steps (fractions allowed).
        dim: width of the embedding; an odd width is padded with one zero column.
        cos_first: False: [sin, cos] (Ho); True: [cos, sin] (OpenAI).
        freq_shift: 1 divides exponents by half − 1 (Ho), 0 by half (OpenAI).

    Returns:
        float32 [B, dim].
    """
    half = dim // 2
    k = torch.arange(half, dtype=torch.float32, device=t.device)
    frequencies = torch.exp(-math.log(10000.0) * k / (half - freq_shift))
    angles = t.float()[:, None] * frequencies[None, :]  # [B, half]
    waves = (angles.cos(), angles.sin()) if cos_first else (angles.sin(), angles.cos())
    return F.pad(torch.cat(waves, dim=1), (0, dim % 2))


class SinusoidalProjection(nn.Module):
    """`sinusoidal_embedding` with its settings."""

    def __init__(self, dim: int, *, cos_first: bool, freq_shift: float) -> None:
        super().__init__()
        self.dim, self.cos_first, self.freq_shift = dim, cos_first, freq_shift

    def forward(self, t: Tensor) -> Tensor:
        return sinusoidal_embedding(
            t, self.dim, cos_first=self.cos_first, freq_shift=self.freq_shift
        )


class FourierProjection(nn.Module):
    """[sin, cos] of 2π·w·log t with fixed random frequencies w (Song et al. 2021, score SDE)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(dim) * FOURIER_SCALE, requires_grad=False)

    def forward(self, t: Tensor) -> Tensor:
        angles = torch.log(t.to(self.weight.dtype))[:, None] * self.weight[None, :] * 2 * math.pi
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class TimeEmbedding(nn.Module):
    """linear_2(silu(linear_1(projection))): [B, dim] -> [B, time_channels]."""

    def __init__(self, dim: int, time_channels: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(dim, time_channels)
        self.linear_2 = nn.Linear(time_channels, time_channels)

    def forward(self, projection: Tensor) -> Tensor:
        hidden: Tensor = self.linear_1(projection)
        out: Tensor = self.linear_2(F.silu(hidden))
        return out


def time_projection(config: UNetConfig) -> tuple[nn.Module, int]:
    """The first, fixed or looked-up, stage of the time embedding and the width of its rows."""
    dim = config.time_proj_dim or config.block_out_channels[0]
    if config.time_embedding_type == "fourier":
        return FourierProjection(dim), 2 * dim
    if config.time_embedding_type == "learned":
        return nn.Embedding(config.num_train_timesteps or 0, dim), dim
    projection = SinusoidalProjection(
        dim, cos_first=config.flip_sin_to_cos, freq_shift=config.freq_shift
    )
    return projection, dim


def class_embedding(config: UNetConfig, projection_dim: int) -> nn.Module | None:
    """Embedding of the labels, added to the time embedding; None for an unconditional network."""
    if config.class_embed_type == "timestep":
        return TimeEmbedding(projection_dim, config.time_channels)
    if config.class_embed_type == "identity":
        return nn.Identity()
    if config.num_class_embeds is not None:
        return nn.Embedding(config.num_class_embeds, config.time_channels)
    return None
