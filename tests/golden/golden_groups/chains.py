"""Whole chains with a real network and given noise, in both directions."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastddpm import timesteps
from fastddpm.diffusion import GaussianDiffusion
from fastddpm.integrations.diffusers import FastDDIMScheduler
from fastddpm.sampler import Sampler, Step
from golden_groups import networks, schedules
from golden_groups.diffusers_ddpm import made
from golden_groups.gaussian import diffusion_of


def run(case: dict[str, Any], inputs: dict[str, Any], ctx: Any) -> dict[str, np.ndarray] | None:
    config = case["config"]
    # "learned" takes the output as σ² itself where ours is its logarithm, fixed_large_log is NaN.
    if config.get("variance_type") in ("learned", "fixed_large_log") or config.get("thresholding"):
        return None
    if case["peer"] == "diffusers":
        chain = _diffusers_ddim if "eta" in config else _diffusers
    elif "x_start" in inputs:
        chain = _ddim_reverse
    else:
        chain = _ddim if "eta" in config else _improved_diffusion
    return chain(case, inputs, ctx)


def _ddim(case: dict[str, Any], inputs: dict[str, Any], ctx: Any) -> dict[str, np.ndarray]:
    d, eta = diffusion_of(case["config"]), case["config"]["eta"]
    # Without noise none is drawn but x_T.
    draws = ctx.noise(case) if eta > 0 else iter(())
    options = {"method": "ddim", "eta": eta}
    steps = _steps(d, case, inputs, lambda step: next(draws), **options)
    return _recorded(case, ctx, steps, [step.t for step in steps])


def _ddim_reverse(case: dict[str, Any], inputs: dict[str, Any], ctx: Any) -> dict[str, np.ndarray]:
    x_0 = torch.tensor(inputs["x_start"])
    sampler = _sampler(diffusion_of(case["config"]), case, inputs, x_0)
    options = {"method": "ddim-inverse", "network_at": "current"}
    steps = list(sampler.stream(x_T=x_0, every=1, **options))
    return _recorded(case, ctx, steps, [len(steps) - 1 - step.t for step in steps])


def _diffusers_ddim(
    case: dict[str, Any], inputs: dict[str, Any], ctx: Any
) -> dict[str, np.ndarray]:
    """By the scheduler, since ours takes ε̂ from the clipped x_0 and that one does not."""
    scheduler = made(FastDDIMScheduler, case["config"])
    network, x = networks.load(inputs["model"], case["config"]), torch.tensor(inputs["x_T"])
    labels, steps = networks.labels_of(inputs), []
    call = {"eta": case["config"]["eta"], "use_clipped_model_output": False}
    visited = scheduler.timesteps.tolist()
    with torch.no_grad():
        for t in visited:
            output = network(x, torch.full((len(x),), t), labels)
            x, x_0 = scheduler.step(output, t, x, **call, return_dict=False)
            steps.append(Step(t, x, x_0))
    return _recorded(case, ctx, steps, visited) | {"timesteps": np.array(visited)}


def _improved_diffusion(
    case: dict[str, Any], inputs: dict[str, Any], ctx: Any
) -> dict[str, np.ndarray]:
    d = diffusion_of(case["config"])
    draws = ctx.noise(case)
    steps = _steps(d, case, inputs, lambda step: next(draws))
    # This peer counts a respaced chain's steps anew.
    return _recorded(case, ctx, steps, [step.t for step in steps])


def _diffusers(case: dict[str, Any], inputs: dict[str, Any], ctx: Any) -> dict[str, np.ndarray]:
    d = _ddpm_scheduler(case["config"])
    draws = ctx.noise(case)
    zeros = np.zeros(inputs["x_T"].shape, np.float32)
    # DDPMScheduler draws for every timestep above 0.
    steps = _steps(d, case, inputs, lambda i: next(draws) if d.schedule.timesteps[i] > 0 else zeros)
    visited = d.schedule.timesteps.flip(0)
    pictures = (steps[-1].x_t / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    return _recorded(case, ctx, steps, visited.tolist()) | {
        "timesteps": visited.numpy(),
        "pipeline_images": pictures.numpy(),
    }


def _recorded(
    case: dict[str, Any], ctx: Any, steps: list[Step], visited: list[int]
) -> dict[str, np.ndarray]:
    """The last state, and those on the way that the case recorded, if it says which.

    visited: the peer's name of each step's timestep, in the chain's order.
    """
    kept = _kept(case, ctx, visited)
    if kept is None:
        return {"final": steps[-1].x_t.numpy()}
    return {
        "final": steps[-1].x_t.numpy(),
        "intermediate": torch.stack([steps[k].x_t for k in kept]).numpy(),
        "intermediate_pred_xstart": torch.stack([steps[k].x_0 for k in kept]).numpy(),
        "intermediate_t": np.array([visited[k] for k in kept]),
    }


def _kept(case: dict[str, Any], ctx: Any, visited: list[int]) -> list[int] | None:
    """Which steps were recorded, from 0: listed by their timesteps, or described in the notes."""
    if (listed := case["outputs"].get("intermediate_t")) is not None:
        return [visited.index(t) for t in ctx.tensor(listed["exact"]).tolist()]
    if (listed := case["config"].get("intermediate_t")) is not None:
        return [visited.index(t) for t in listed]
    notes = case.get("notes", "")
    described = re.search(r"after step \(j ?\+ ?1\) ?\* ?(\d+)", notes)
    if described is None:
        return None
    every, last = int(described[1]), len(visited) - 1
    kept = list(range(every - 1, last + 1, every))
    return kept + ([last] if "after the last step" in notes and last not in kept else [])


def _ddpm_scheduler(config: dict[str, Any]) -> GaussianDiffusion:
    """The diffusion of a DDPMScheduler after set_timesteps(num_inference_steps)."""
    schedule = schedules.diffusers(config)
    T = len(schedule)
    n = config.get("num_inference_steps") or T
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
    d: GaussianDiffusion,
    case: dict[str, Any],
    inputs: dict[str, Any],
    draw: Callable[[int], np.ndarray],
    **options: Any,
) -> list[Step]:
    """Every step of the chain from x_T, step i with the noise draw(i)."""
    x_T = torch.tensor(inputs["x_T"])

    def noise(step: int, shape: tuple[int, ...]) -> Tensor:
        return x_T if step == d.num_steps else torch.from_numpy(draw(step))

    labels = networks.labels_of(inputs)
    sampler = _sampler(d, case, inputs, x_T)
    return list(sampler.stream(len(x_T), every=1, noise=noise, labels=labels, **options))


def _sampler(
    d: GaussianDiffusion, case: dict[str, Any], inputs: dict[str, Any], images: Tensor
) -> Sampler:
    return Sampler(networks.load(inputs["model"], case["config"]), d, shape=images.shape[1:])
