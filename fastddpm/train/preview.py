"""Grids of samples during training: the averaged model through a short chain.

The chain is respaced to `sample_steps` steps; noise and labels are fixed, so that the grids of a
run show the same images as they form.
"""

from pathlib import Path

import torch

from fastddpm import timesteps
from fastddpm.diffusion import GaussianDiffusion
from fastddpm.sampler import Sampler
from fastddpm.sampler.images import image_grid, save_png, to_uint8
from fastddpm.train.config import TrainConfig
from fastddpm.unet import UNet


def save_preview(path: Path, unet: UNet, diffusion: GaussianDiffusion, config: TrainConfig) -> None:
    """Writes a PNG of `sample_count` samples of `unet`, each made in `sample_steps` steps."""
    chosen = timesteps.linspace(config.timesteps, config.sample_steps)
    short = diffusion.respace(chosen)
    classes = unet.config.num_class_embeds
    labels = None
    if classes is not None:
        # The null class of label dropout is not a class to show.
        shown = max(1, classes - (config.label_dropout > 0))
        labels = torch.arange(config.sample_count) % shown
    sampler = Sampler(unet, short, batch_size=config.batch_size)
    images = sampler.sample(config.sample_count, seed=config.seed, labels=labels)
    save_png(path, image_grid(to_uint8(images)))
