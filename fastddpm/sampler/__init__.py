"""Sampling: the reverse chain with the model, the noise and the engine of the caller's choice."""

from fastddpm.sampler.images import from_uint8, image_grid, load_png, save_png, to_uint8
from fastddpm.sampler.sampler import Sampler, Step

__all__ = ["Sampler", "Step", "from_uint8", "image_grid", "load_png", "save_png", "to_uint8"]
