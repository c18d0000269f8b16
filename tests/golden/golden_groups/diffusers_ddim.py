"""DDIMScheduler: single steps with the noise given."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fastddpm.integrations.diffusers import FastDDIMScheduler
from golden_groups import tensors
from golden_groups.diffusers_ddpm import made


def run(case: dict[str, Any], inputs: dict[str, Any], ctx: Any) -> dict[str, np.ndarray] | None:
    given, config = tensors(inputs), case["config"]
    scheduler = made(FastDDIMScheduler, config)
    call = {k: config[k] for k in ("eta", "use_clipped_model_output")}
    rows = [
        scheduler.step(output, int(t), x, **call, variance_noise=z if call["eta"] > 0 else None)
        for output, t, x, z in zip(
            *(given["model_output"], given["timesteps"], given["x_t"], given["variance_noise"]),
            strict=True,
        )
    ]
    names = ("prev_sample", "pred_original_sample")
    return {name: torch.stack([getattr(row, name) for row in rows]).numpy() for name in names}
