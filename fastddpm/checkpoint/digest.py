"""The identity of a model: SHA-256 over its weights, and over the process that it belongs to."""

from __future__ import annotations

import dataclasses
import hashlib

import torch
from torch import Tensor, nn

from fastddpm.diffusion import GaussianDiffusion


def weights_digest(network: nn.Module) -> str:
    """SHA-256 over names, dtypes and values of the weights: the identity of a model, wherever it
    lies."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        _add(digest, name, tensor)
    return digest.hexdigest()


def diffusion_digest(diffusion: GaussianDiffusion) -> str:
    """SHA-256 over the betas, the timesteps and every other setting; ``repr`` rounds the betas."""
    digest = hashlib.sha256()
    _add(digest, "betas", diffusion.schedule.betas)
    _add(digest, "timesteps", diffusion.schedule.timesteps)
    for field in dataclasses.fields(diffusion):
        if field.name != "schedule":
            digest.update(f"{field.name} {getattr(diffusion, field.name)!r}\n".encode())
    return digest.hexdigest()


def _add(digest: hashlib._Hash, name: str, tensor: Tensor) -> None:
    digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
    digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
