"""Interpolation, progressive generation and single predictions of Ho's own source."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastddpm.diffusion import GaussianDiffusion
from fastddpm.sampler import Sampler
from fastddpm.schedule import NoiseSchedule
from golden_groups import networks, tensors
from golden_groups.gaussian import ho_p_mean_variance

_VARIANCES = {"fixedsmall": "fixed_small", "fixedlarge": "fixed_large"}


def run(case: dict[str, Any], inputs: dict[str, Any], ctx: Any) -> dict[str, np.ndarray] | None:
    subjects = {
        "interpolate": _interpolate,
        "progressive": _progressive,
        "p_mean_variance": ho_p_mean_variance,
    }
    subject = subjects.get(case["id"].split("/")[1])
    return None if subject is None else subject(case, inputs, ctx)


def _interpolate(case: dict[str, Any], inputs: dict[str, Any], ctx: Any) -> dict[str, np.ndarray]:
    config, given = case["config"], tensors(inputs)
    sampler = _sampler(case, config["variance"], inputs, given["x1"].shape[1:])
    # Ho draws for x1, for x2 and for the steps t, ..., 0: the order of the calls.
    images = sampler.interpolate(
        given["x1"],
        given["x2"],
        config["t"],
        [config["lam"]],
        noise=_replay(case, ctx),
        labels=networks.labels_of(inputs),
    )
    return {"x_interp": images[0].numpy()}


def _progressive(case: dict[str, Any], inputs: dict[str, Any], ctx: Any) -> dict[str, np.ndarray]:
    config, shape = case["config"], case["noise"]["shape"]
    every = config["include_xstartpred_freq"]
    sampler = _sampler(case, config["var_type"], inputs, shape[1:])
    labels = networks.labels_of(inputs)
    steps = list(sampler.stream(shape[0], every=every, noise=_replay(case, ctx), labels=labels))
    # Slot k keeps the estimate of step t = k * every, the last one visited with t // every = k.
    slots = [s.x_0 for s in reversed(steps)][: config["T"] // every]
    return {"sample": steps[-1].x_t.numpy(), "xstartpreds": torch.stack(slots, dim=1).numpy()}


def _sampler(case: dict[str, Any], variance: str, inputs: dict[str, Any], shape: Any) -> Sampler:
    config = case["config"]
    schedule = NoiseSchedule.linear(config["T"], config["b0"], config["b1"])
    clip = 1.0 if config.get("clip_denoised", True) else None
    d = GaussianDiffusion(schedule, "epsilon", _VARIANCES[variance], clip=clip)
    return Sampler(networks.load(inputs["model"], config), d, shape=shape)


def _replay(case: dict[str, Any], ctx: Any) -> Any:
    """The recorded draws, one for each call."""
    draws = ctx.noise(case)

    def noise(step: int, shape: tuple[int, ...]) -> Tensor:
        return torch.from_numpy(next(draws))

    return noise
