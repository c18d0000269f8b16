"""Optimisation steps: loss, gradients before clipping, Adam, moving average."""

from __future__ import annotations

import re
import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastddpm.checkpoint import to_openai
from fastddpm.diffusion import GaussianDiffusion
from fastddpm.train import TrainConfig
from fastddpm.train.loss import Batch, losses
from fastddpm.train.update import Update
from fastddpm.unet import UNetConfig
from golden_groups import networks, tensors
from golden_groups.gaussian import diffusion_of
from golden_groups.likelihood import loss_of


def run(case: dict[str, Any], inputs: dict[str, Any], ctx: Any) -> dict[str, np.ndarray] | None:
    config, given = case["config"], tensors(inputs)
    unet = networks.load(inputs["model"], config).train()
    diffusion = diffusion_of(config)
    settings = _settings(config, unet.config, diffusion)
    update = Update(settings, unet)
    result: dict[str, Any] = {"loss_per_sample": [], "grad_norm_before_clip": []}
    # The stream of draws has no end of its own.
    for k, draw in zip(range(config["steps"]), ctx.noise(case), strict=False):
        labels = networks.labels_of(inputs)
        batch = Batch(given["x_start"], given["t"][k], torch.tensor(draw), labels)
        loss = losses(unet, diffusion, batch, settings.loss, settings.vlb_weight)
        loss.mean().backward()
        if k == 0:
            gradients = _openai(unet.config, {n: p.grad for n, p in unet.named_parameters()})
            result |= _reported(case, "grad_step0", gradients)
            result |= _summary(case, gradients)
        result["loss_per_sample"].append(loss.detach().numpy())
        result["grad_norm_before_clip"].append(update.apply(k).numpy())
    for kind, network in (("param_after", unet), ("ema_after", update.ema.model)):
        result |= _reported(case, kind, _openai(unet.config, network.state_dict()))
    return {name: np.asarray(value) for name, value in result.items()}


def _settings(
    config: dict[str, Any], unet: UNetConfig, diffusion: GaussianDiffusion
) -> TrainConfig:
    kind, weight = loss_of(config.get("loss", "MSE"))
    return TrainConfig(
        data="given",
        unet=unet,
        prediction=diffusion.prediction,
        variance=diffusion.variance,
        loss=kind,
        vlb_weight=weight,
        learning_rate=config["lr"],
        warmup_steps=0,
        clip_norm=config["clip_norm"],
        ema_decay=config["ema"],
        ema_warmup=False,
    )


def _reported(
    case: dict[str, Any], kind: str, values: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Those of `values` that the case expects, under its names: kind/NAME."""
    return {f"{kind}/{n}": v for n, v in values.items() if f"{kind}/{n}" in case["outputs"]}


def _openai(config: UNetConfig, state: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: t.detach().numpy() for name, t in to_openai(state, config).items()}


def _summary(case: dict[str, Any], gradients: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of each parameter, in the case's order: the gradient's norm, and its product with a draw."""
    expected = case["outputs"].get("grad_step0_summary")
    if expected is None:
        return {}
    # The recipe of the draw stands in the columns' names.
    base = re.search(r"\((\d+)\*1000003", expected["columns"][1])
    if base is None:
        raise ValueError(f"expected the draw's seed in {expected['columns']}")
    rows = []
    for name in expected["rows"]:
        gradient = gradients[name].astype(np.float64)
        seed = (int(base[1]) * 1000003 + zlib.crc32(name.encode())) & 0xFFFFFFFF
        draw = np.random.RandomState(seed).standard_normal(gradient.shape)
        rows.append((np.linalg.norm(gradient), (gradient * draw).sum()))
    # The gradients are float32, and are judged as such.
    return {"grad_step0_summary": np.array(rows, np.float32)}
