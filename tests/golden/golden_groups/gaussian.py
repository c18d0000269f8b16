"""Single steps of the forward and reverse process with a given model output."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastddpm import timesteps
from fastddpm.diffusion import GaussianDiffusion
from fastddpm.sampler.ddim import ddim_reverse_step, ddim_step
from golden_groups import tensors
from golden_groups.schedules import named

_PREDICTIONS = {"EPSILON": "epsilon", "START_X": "sample", "PREVIOUS_X": "previous_sample"}
_HO_PREDICTIONS = {"eps": "epsilon", "xstart": "sample", "xprev": "previous_sample"}
_HO_VARIANCES = {"fixedsmall": "fixed_small", "fixedlarge": "fixed_large"}


def diffusion_of(config: dict[str, Any]) -> GaussianDiffusion:
    """The diffusion of an improved-diffusion config: schedule, T, spacing, rescale, types, clip.

    Single steps spell the last three mean_type, var_type and clip_denoised; chains and training
    mean, var and clip.
    """
    schedule = named("improved-diffusion", config)
    if config.get("spacing"):
        schedule = schedule.respace(timesteps.openai_sections(config["T"], config["spacing"]))
    return GaussianDiffusion(
        schedule,
        _PREDICTIONS[config.get("mean_type", config.get("mean", "EPSILON"))],
        config.get("var_type", config.get("var", "FIXED_SMALL")).lower(),
        clip=1.0 if config.get("clip_denoised", config.get("clip", True)) else None,
        timestep_scale=1000 / config["T"] if config.get("rescale") else None,
    )


def model_output(given: dict[str, Tensor]) -> Tensor:
    """The halves of an output, joined on the channels."""
    halves = [
        given[f"model_output_{half}_half"]
        for half in ("mean", "var")
        if f"model_output_{half}_half" in given
    ]
    return torch.cat(halves, dim=1)


def run(case: dict[str, Any], inputs: dict[str, Any], ctx: Any) -> dict[str, np.ndarray] | None:
    subject = case["id"].split("/")[2]
    given = tensors(inputs)
    d, t = diffusion_of(case["config"]), given["t"]
    if subject == "q_sample":
        result = {"x_t": d.q_sample(given["x_start"], t, given["noise"])}
    elif subject == "q_mean_variance":
        result = _moments(d.q_mean_variance(given["x_start"], t))
    elif subject == "q_posterior_mean_variance":
        result = _moments(d.q_posterior(given["x_start"], given["x_t"], t))
    elif subject == "p_mean_variance":
        result = _prediction(d, given) | {"timesteps_seen_by_model": d.model_timesteps(t)}
    else:
        sample = _step(subject, d, case["config"], given)
        if sample is None:
            return None
        result = {"sample": sample, "pred_xstart": _prediction(d, given)["pred_xstart"]}
    return {name: tensor.numpy() for name, tensor in result.items()}


def ho_p_mean_variance(
    case: dict[str, Any], inputs: dict[str, Any], ctx: Any
) -> dict[str, np.ndarray]:
    """Cases ho/p_mean_variance/*: GaussianDiffusion2 of Ho's source."""
    config, given = case["config"], tensors(inputs)
    schedule = named(
        "ho",
        {
            "schedule": "linear",
            "T": config["T"],
            "beta_start": config["b0"],
            "beta_end": config["b1"],
        },
    )
    d = GaussianDiffusion(
        schedule,
        _HO_PREDICTIONS[config["mean_type"]],
        _HO_VARIANCES[config["var_type"]],
        clip=1.0 if config.get("clip_denoised", True) else None,
    )
    result = _prediction(d, {**given, "model_output_mean_half": given["model_output"]})
    if d.variance == "fixed_large":
        # Ho's variance is beta_0 at t = 0, where his log-variance (the one in use) is not its log.
        beta = schedule.betas[given["t"]].to(given["x_t"].dtype)
        result["variance"] = beta.reshape(-1, 1, 1, 1).expand(given["x_t"].shape)
    return {name: tensor.numpy() for name, tensor in result.items()}


def _step(
    subject: str, d: GaussianDiffusion, config: dict[str, Any], given: dict[str, Tensor]
) -> Tensor | None:
    step = (d, model_output(given), given["x_t"], given["t"])
    if subject == "p_sample":
        return d.p_step(*step[1:], given["step_noise"])
    if subject.startswith("ddim_sample"):
        return ddim_step(*step, given["step_noise"], config["eta"])
    if subject.startswith("ddim_reverse"):
        return ddim_reverse_step(*step)
    return None


def _moments(moments: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
    return dict(zip(("mean", "variance", "log_variance"), moments, strict=True))


def _prediction(d: GaussianDiffusion, given: dict[str, Tensor]) -> dict[str, Tensor]:
    p = d.p_mean_variance(model_output(given), given["x_t"], given["t"])
    return _moments(p[:3]) | {"pred_xstart": p.x_0}
