"""diffusers' DDPMPipeline as it comes, and what fastddpm.accelerate makes of it: for a worker."""

from __future__ import annotations

import time
from typing import Any

import torch

import fastddpm
from benchmarks.cpu.contenders import Setup
from benchmarks.worker import Prepared

SEED = 0


def prepared(setup: dict[str, Any], steps: int, *, accelerated: bool) -> Prepared:
    """The bytes of its images, and turns in milliseconds a call."""
    own = Setup.from_json(setup)
    torch.set_num_threads(own.threads)
    pipeline = plain(own)
    if accelerated:
        pipeline = fastddpm.accelerate(pipeline, "cpu", threads=own.threads)

    def images(count: int = steps) -> Any:
        generator = torch.Generator().manual_seed(SEED)
        settings = {"num_inference_steps": count, "generator": generator, "output_type": "np"}
        return pipeline(batch_size=own.batch, **settings).images

    def turn() -> float:
        # Finds the caches and the threads as the contender before left them.
        images(1)
        begin = time.perf_counter()
        images()
        return 1e3 * (time.perf_counter() - begin)

    pixels = (images() * 255).round().astype("uint8").ravel().tolist()
    return pixels, turn


def plain(setup: Setup) -> Any:
    """diffusers' own pipeline, without its progress bar."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    unet = UNet2DModel.from_pretrained(setup.folder, low_cpu_mem_usage=False).eval()
    pipeline = DDPMPipeline(unet, DDPMScheduler.from_pretrained(setup.folder))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
