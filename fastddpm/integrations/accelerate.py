"""accelerate: a drop-in for somebody's network, run by the fastest engine of its device.

    model                          what runs
    diffusers UNet2DModel          the same network as a fastddpm.UNet: every fused kernel
    OpenAI UNetModel               likewise
    fastddpm.UNet                  itself
    any other (x, t) -> output     the model as it is, compiled and captured whole
    diffusers DDPM/DDIMPipeline    the pipeline with its network and its scheduler accelerated; by
                                   request a DDPMPipeline whose images a Sampler makes

Called by itself the result answers as the model did. A Sampler made of it also runs the reverse
step and its noise as one fused kernel, and the whole step in one captured graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fastddpm.engine import CpuOptions
from fastddpm.integrations import diffusers, openai
from fastddpm.integrations.accelerated import Accelerated, Converted

NOISES = ("torch", "counter")


def accelerate(
    model: Any,
    engine: str = "auto",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    *,
    tf32: bool = False,
    threads: int | None = None,
    weights: str = "float32",
    memory: str = "small",
    noise: str = "torch",
) -> Any:
    """The model as a drop-in that an engine runs (inference only).

    Args:
        model: diffusers' UNet2DModel or a pipeline with one, OpenAI's UNetModel, a fastddpm.UNet,
            or any callable (x [B, C, H, W], t [B]) -> output [B, C', H, W].
        engine, device, dtype, tf32, threads, weights, memory: as ``fastddpm.Sampler``'s.
        noise: of a pipeline: "torch" draws what diffusers draws of the same torch generators;
            "counter" has the images of a DDPMPipeline made by a Sampler, so that they depend on
            the generator's seed and their index alone (counter_pipeline.py).

    Returns:
        An ``Accelerated`` module, called as the model is: (sample, timestep, class_labels) for a
        UNet2DModel, (x, timesteps, y) for a UNetModel, (x, t[, labels]) -> tensor for any other.
        For a pipeline, one of diffusers' class. It stands for the model, whose weights it follows.

    Raises:
        ValueError: not callable; an engine that cannot run here; another pipeline; a UNet2DModel
            with blocks or settings that fastddpm.UNet does not have (``model.forward`` still runs
            as it is); noise="counter" for anything but a DDPMPipeline with a DDPMScheduler.
    """
    if noise not in NOISES:
        raise ValueError(f"expected a noise in {NOISES}, got {noise!r}")
    if not callable(model):
        raise ValueError(f"expected a model (x, t) -> output, got {type(model).__name__}")
    options: dict[str, Any] = {
        "tf32": tf32,
        "threads": threads,
        "weights": weights,
        "memory": memory,
    }
    if noise == "counter":
        diffusers.check_for_counter_noise(model)
    if isinstance(model, Accelerated):
        return accelerate(model.source, engine, device, dtype, **options)
    if diffusers.is_pipeline(model):
        network = accelerate(model.unet, engine, device, dtype, **options)
        if noise == "counter":
            settings = {"engine": engine, "device": device, "dtype": dtype, **options}
            return diffusers.counter_pipeline(network, model, settings)
        return diffusers.fast_pipeline(model, network)
    kind, network = Accelerated, model
    if isinstance(model, nn.Module) and diffusers.is_diffusers_model(model):
        kind = diffusers.AcceleratedUNet2DModel
        network = Converted(model, diffusers.DiffusersReader(model))
    elif isinstance(model, nn.Module) and openai.is_openai_model(model):
        kind = openai.AcceleratedUNetModel
        network = Converted(model, openai.OpenAIReader(model))
    own = CpuOptions(threads, weights, memory)
    return kind(model, network, engine, device, dtype, tf32=tf32, options=own)
