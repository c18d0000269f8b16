"""Sampling: the reverse chain with the model, the noise and the engine of the caller's choice."""

from fastddpm.sampler.branches import Branches
from fastddpm.sampler.images import from_uint8, image_grid, load_png, save_png, to_uint8
from fastddpm.sampler.measured import Measured
from fastddpm.sampler.optimal_steps import optimal_timesteps
from fastddpm.sampler.recipe import Options
from fastddpm.sampler.sampler import Sampler, Step
from fastddpm.sampler.threshold import Threshold

__all__ = [
    "Branches",
    "Measured",
    "Options",
    "Sampler",
    "Step",
    "Threshold",
    "from_uint8",
    "image_grid",
    "load_png",
    "optimal_timesteps",
    "save_png",
    "to_uint8",
]
