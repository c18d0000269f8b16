"""Where and how the networks of a sampler run."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastddpm.engine import Selection


@dataclass(frozen=True)
class Place:
    """engine: the one that runs. dtype: what the network computes in; None: its own. tf32: whether
    float32 products may be rounded to TF32 on a GPU."""

    engine: Selection
    device: torch.device
    dtype: torch.dtype | None = None
    tf32: bool = False
