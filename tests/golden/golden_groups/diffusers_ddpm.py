"""DDPMScheduler: single steps, noise added to a level, velocities."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastddpm.integrations.diffusers import FastDDPMScheduler
from golden_groups import tensors

# What the chain is told in set_timesteps, not by the constructor.
_CALL = ("num_inference_steps", "eta", "use_clipped_model_output")


def run(case: dict[str, Any], inputs: dict[str, Any], ctx: Any) -> dict[str, np.ndarray] | None:
    given, method = tensors(inputs), case["id"].split("/")[1]
    if method in ("add_noise", "get_velocity"):
        scheduler = FastDDPMScheduler(**case["config"], compatibility="exact")
        levels = getattr(scheduler, method)(given["sample"], given["noise"], given["timesteps"])
        return {"out": levels.numpy()}
    if case["config"].get("variance_type") == "fixed_large_log":
        # NaN there.
        return None
    scheduler = made(FastDDPMScheduler, case["config"])
    if scheduler.variance_type == "learned":
        # σ² there, its logarithm here.
        output = given["model_output"]
        mean, variance = output.chunk(2, dim=2)
        given["model_output"] = torch.cat([mean, variance.log()], dim=2)
    found = re.search(r"manual_seed\((\d+) ?\+ ?j\)", case["call"])
    assert found is not None
    return steps(scheduler, given, int(found[1]))


def made(kind: Any, config: dict[str, Any]) -> Any:
    """The scheduler with exact tables and its timesteps set.

    Where the last timestep is above 0 diffusers adds noise, an exact scheduler none; the cases
    have that with fixed_small only, whose deviation is 1e-10 there, and with eta = 0.
    """
    settings = {k: v for k, v in config.items() if k not in _CALL}
    scheduler = kind(**settings, compatibility="exact")
    if config["num_inference_steps"] is not None:
        scheduler.set_timesteps(config["num_inference_steps"])
    return scheduler


def steps(scheduler: Any, given: dict[str, Tensor], seed: int, **call: Any) -> dict[str, Any]:
    """One independent step for each row j of the inputs, its generator seeded with seed + j."""
    rows = []
    for j, t in enumerate(given["timesteps"]):
        generator = torch.Generator().manual_seed(seed + j)
        step = scheduler.step(
            given["model_output"][j], int(t), given["x_t"][j], generator=generator, **call
        )
        rows.append(step)
    names = ("prev_sample", "pred_original_sample")
    return {name: torch.stack([getattr(row, name) for row in rows]).numpy() for name in names}
