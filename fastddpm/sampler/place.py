"""Where and how the networks of a sampler run."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastddpm import engine as engines
from fastddpm.diffusion import GaussianDiffusion
from fastddpm.engine import CpuOptions, Selection
from fastddpm.sampler.model import Model, device_of, unwrapped
from fastddpm.sampler.unet_network import unfit_for_programs


@dataclass(frozen=True)
class Place:
    """engine: the one that runs. dtype: what the network computes in; None: its own. tf32: whether
    float32 products may be rounded to TF32 on a GPU."""

    engine: Selection
    device: torch.device
    dtype: torch.dtype | None = None
    tf32: bool = False

    @classmethod
    def of(
        cls,
        model: Model,
        diffusion: GaussianDiffusion,
        engine: str,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        cpu: CpuOptions,
        tf32: bool,
    ) -> Place:
        """Where a caller wants the model to run; ValueError for what cannot be. Arguments as
        ``fastddpm.Sampler``'s."""
        if not callable(model):
            raise ValueError(f"model must be callable as model(x, t), got {type(model).__name__}")
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ValueError(f"dtype must be a floating-point torch.dtype, got {dtype!r}")
        if not isinstance(diffusion, GaussianDiffusion):
            raise ValueError(f"diffusion must be a GaussianDiffusion, got {diffusion!r}")
        there = device_of(model, device)
        unfit = unfit_for_programs(unwrapped(model), dtype)
        return cls(engines.select(engine, there, cpu, unfit=unfit), there, dtype, tf32)
