"""Whole bounds, losses, the KL of two Gaussians and the discretised decoder."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fastddpm.evaluation import bits_per_dim
from fastddpm.gaussian import discretized_gaussian_log_likelihood, normal_kl, open_tail
from fastddpm.train.loss import LossKind
from golden_groups import networks, tensors
from golden_groups.gaussian import diffusion_of, model_output


def run(case: dict[str, Any], inputs: dict[str, Any], ctx: Any) -> dict[str, np.ndarray] | None:
    subject = case["id"].split("/")[1]
    if subject == "bpd":
        return _bpd(case, inputs, ctx)
    if subject == "losses":
        return _losses(case, inputs)
    if subject == "normal_kl":
        return _normal_kl(inputs)
    if subject == "discretized_gaussian_log_likelihood":
        return _decoder(inputs)
    return None


def loss_of(loss_type: str) -> tuple[LossKind, float | None]:
    """OpenAI's LossType as the kind and vlb_weight of `GaussianDiffusion.training_losses`."""
    kinds: dict[str, LossKind] = {"KL": "vlb", "RESCALED_KL": "rescaled_vlb"}
    # OpenAI's MSE adds the bound's term whole, RESCALED_MSE times T/1000.
    return kinds.get(loss_type, "hybrid"), 1.0 if loss_type == "MSE" else None


def _bpd(case: dict[str, Any], inputs: dict[str, Any], ctx: Any) -> dict[str, np.ndarray]:
    """With images of float64 all of it is float64, the network too."""
    d, x_0, draws = diffusion_of(case["config"]), torch.tensor(inputs["x_start"]), ctx.noise(case)
    network = networks.load(inputs["model"], case["config"]).to(x_0.dtype)
    # Draw k of the peer belongs to t = T-1-k, the order in which the bound asks.
    bits = bits_per_dim(network, d, x_0, noise=lambda t, shape: next(draws))
    # The peer's mse is that of the noise that x_0's estimate leaves.
    snr = d.schedule.snr.to(x_0.dtype)
    columns = {"vb": bits.vb, "xstart_mse": bits.mse, "mse": snr * bits.mse}
    totals = {"total_bpd": bits.total, "prior_bpd": bits.prior}
    openai = totals | {name: values.flip(1) for name, values in columns.items()}
    ho = {f"{name}_ho_order": values for name, values in (totals | columns).items()}
    return {name: values.numpy() for name, values in (openai | ho).items()}


def _losses(case: dict[str, Any], inputs: dict[str, Any]) -> dict[str, np.ndarray]:
    config, given = case["config"], tensors(inputs)
    d = diffusion_of(config)
    kind, weight = loss_of(config["loss_type"])
    losses = d.training_losses(
        lambda x, t: model_output(given),
        given["x_start"],
        given["t"],
        given["noise"],
        kind,
        vlb_weight=weight,
    )
    if config["loss_type"] == "RESCALED_MSE" and "vb" in losses:
        losses["vb"] = losses["vb"] * d.num_steps / 1000
    return {name: loss.numpy() for name, loss in losses.items()}


def _normal_kl(inputs: dict[str, Any]) -> dict[str, np.ndarray]:
    given = tensors(inputs)
    mean1, logvar1 = given["mean1"], given["logvar1"]
    return {
        "kl": normal_kl(mean1, logvar1, given["mean2"], given["logvar2"]).numpy(),
        "kl_to_standard": normal_kl(mean1, logvar1, 0.0, 0.0).numpy(),
    }


def _decoder(inputs: dict[str, Any]) -> dict[str, np.ndarray]:
    given = tensors(inputs)
    x, means, log_scales = given["x"], given["means"], given["log_scales"]
    if x.ndim == 1:
        means, log_scales = means[:, None, None], log_scales[None, :, None]
    return {
        "log_probs": discretized_gaussian_log_likelihood(x, means, log_scales).numpy(),
        "branch_f32": open_tail(x.float()).numpy(),
        "branch_f64": open_tail(x.double()).numpy(),
    }
