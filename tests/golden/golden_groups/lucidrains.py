"""Predictions and losses of lucidrains' GaussianDiffusion, with and without min-SNR weights."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from fastddpm.diffusion import GaussianDiffusion
from golden_groups import tensors
from golden_groups.schedules import named

_PREDICTIONS = {"pred_noise": "epsilon", "pred_x0": "sample", "pred_v": "v_prediction"}
_MIN_SNR_GAMMA = 5.0


def run(case: dict[str, Any], inputs: dict[str, Any], ctx: Any) -> dict[str, np.ndarray] | None:
    config = case["config"]
    if "objective" not in config:
        return None
    given = tensors(inputs)
    schedule = named("lucidrains", {"schedule": config["beta_schedule"], "T": config["timesteps"]})
    # Its log-variance at t = 0 is floored at 1e-20, as diffusers' is.
    d = GaussianDiffusion(schedule, _PREDICTIONS[config["objective"]], last_step_noise="diffusers")
    x_0, t, noise, output = (given[k] for k in ("x_start", "t", "noise", "model_output"))
    # Without min-SNR the peer's weights are those with no cap.
    cap = _MIN_SNR_GAMMA if config["min_snr_loss_weight"] else math.inf
    loss = d.training_losses(lambda x, t: output, x_0, t, noise, "min_snr", snr_cap=cap)
    clipped = d.p_mean_variance(output, given["x_t"], t)
    free = dataclasses.replace(d, clip=None).p_mean_variance(output, given["x_t"], t)
    first = (slice(None), slice(1), slice(1), slice(1))
    result = {
        "loss": loss["loss"],
        "loss_weight": d.min_snr_weight(cap),
        "pred_noise": free.epsilon,
        "pred_x_start": free.x_0,
        "pred_noise_clipped": clipped.epsilon,
        "pred_x_start_clipped": clipped.x_0,
        "p_mean": clipped.mean,
        "p_posterior_variance": clipped.variance[first],
        "p_posterior_log_variance": clipped.log_variance[first],
        "v_target": d.target(x_0, d.q_sample(x_0, t, noise), t, noise),
    }
    return {name: tensor.numpy() for name, tensor in result.items()}
