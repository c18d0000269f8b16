"""Whole reverse chains with a real network and given noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastddpm import timesteps
from fastddpm.diffusion import GaussianDiffusion
from fastddpm.sampler import Sampler, Step
from golden_groups import networks, schedules
from golden_groups.gaussian import diffusion_of


def run(case: dict[str, Any], inputs: dict[str, Any], ctx: Any) -> dict[str, np.ndarray] | None:
    if "ddim" in case["id"].split("/")[-1]:
        return None
    chain = _diffusers if case["peer"] == "diffusers" else _improved_diffusion
    return chain(case, inputs, ctx)


def _improved_diffusion(
    case: dict[str, Any], inputs: dict[str, Any], ctx: Any
) -> dict[str, np.ndarray]:
    c = case["config"]
    config = c | {"mean_type": c["mean"], "var_type": c["var"], "clip_denoised": c["clip"]}
    d = diffusion_of(config)
    draws = ctx.noise(case)
    steps = _steps(d, inputs, lambda step: next(draws))
    kept = ctx.tensor(case["outputs"]["intermediate_t"]["exact"]).tolist()
    by_t = {step.t: step for step in steps}
    return {
        "final": steps[-1].x_t.numpy(),
        "intermediate": torch.stack([by_t[t].x_t for t in kept]).numpy(),
        "intermediate_pred_xstart": torch.stack([by_t[t].x_0 for t in kept]).numpy(),
        "intermediate_t": np.array(kept),
    }


def _diffusers(case: dict[str, Any], inputs: dict[str, Any], ctx: Any) -> dict[str, np.ndarray]:
    d = _ddpm_scheduler(case["config"])
    draws = ctx.noise(case)
    zeros = np.zeros(inputs["x_T"].shape, np.float32)
    # DDPMScheduler draws for every timestep above 0.
    steps = _steps(d, inputs, lambda i: next(draws) if d.schedule.timesteps[i] > 0 else zeros)
    recorded = len(ctx.tensor(case["outputs"]["intermediate"]["f64"]))
    every = -(-len(steps) // recorded)
    states = [s.x_t for k, s in enumerate(steps, 1) if k % every == 0 or k == len(steps)]
    final = steps[-1].x_t
    return {
        "final": final.numpy(),
        "intermediate": torch.stack(states).numpy(),
        "timesteps": d.schedule.timesteps.flip(0).numpy(),
        "pipeline_images": (final / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy(),
    }


def _ddpm_scheduler(config: dict[str, Any]) -> GaussianDiffusion:
    """The diffusion of a DDPMScheduler after set_timesteps(num_inference_steps)."""
    schedule = schedules.diffusers(config)
    T, n = len(schedule), config["num_inference_steps"]
    spacing = config.get("timestep_spacing", "leading")
    if spacing == "leading":
        kept = timesteps.leading(T, n, config.get("steps_offset", 0))
    else:
        kept = timesteps.spaced(spacing, T, n)
    return GaussianDiffusion(
        schedule.respace(kept),
        config.get("prediction_type", "epsilon"),
        config.get("variance_type", "fixed_small").removesuffix("_log"),
        clip=config.get("clip_sample_range", 1.0) if config.get("clip_sample", True) else None,
        last_step_noise="diffusers",
    )


def _steps(
    d: GaussianDiffusion, inputs: dict[str, Any], draw: Callable[[int], np.ndarray]
) -> list[Step]:
    """Every step of the chain from x_T, step i with the noise draw(i)."""
    x_T = torch.tensor(inputs["x_T"])

    def noise(step: int, shape: tuple[int, ...]) -> Tensor:
        return x_T if step == d.num_steps else torch.from_numpy(draw(step))

    sampler = Sampler(networks.load(inputs["model"]), d, shape=x_T.shape[1:])
    return list(sampler.stream(len(x_T), every=1, noise=noise))
