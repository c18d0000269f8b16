"""The model that a command works with, from its options."""

from __future__ import annotations

import dataclasses
import hashlib

import torch
from torch import nn

from fastddpm import timesteps
from fastddpm.checkpoint import from_pretrained
from fastddpm.diffusion import GaussianDiffusion
from fastddpm.sampler import Sampler

MODEL_HELP = "A built-in name, a diffusers folder or a checkpoint file."
STEPS_HELP = "Reverse steps, 1 to T, all T by default; fewer are spread over the T of the model."
SPACING_HELP = "How fewer steps are spread: linspace, leading, trailing or quad."
ENGINE_HELP = "auto, reference, compile, cuda_graph or cpu; one asked for is used or refused."
DEVICE_HELP = "Where to run: cpu, cuda, cuda:1, ...; by default a GPU if torch sees one."
DTYPE_HELP = "What the network computes in: float32, bfloat16 or float16."
DTYPES = ("float32", "bfloat16", "float16")


def load_sampler(
    model: str, steps: int | None, spacing: str, engine: str, device: str | None, dtype: str
) -> tuple[Sampler, nn.Module]:
    """The sampler over the model's (respaced) chain, and the network itself."""
    if dtype not in DTYPES:
        raise ValueError(f"--dtype is one of {', '.join(DTYPES)}; got {dtype!r}")
    unet, diffusion = from_pretrained(model)
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    diffusion = respaced(diffusion, steps, spacing)
    return Sampler(unet, diffusion, engine, place, getattr(torch, dtype)), unet


def respaced(diffusion: GaussianDiffusion, steps: int | None, spacing: str) -> GaussianDiffusion:
    """The diffusion over ``steps`` of its timesteps; None keeps them all."""
    if steps is None:
        return diffusion
    kept = timesteps.spaced(spacing, diffusion.num_steps, steps)
    return dataclasses.replace(diffusion, schedule=diffusion.schedule.respace(kept))


def weights_digest(network: nn.Module) -> str:
    """SHA-256 over names, dtypes and values of the weights: the identity of a model, wherever it
    lies."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
