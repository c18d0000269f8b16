"""Optimisation steps: loss, gradients before clipping, Adam, moving average."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastddpm.checkpoint import from_pretrained, to_openai
from fastddpm.diffusion import GaussianDiffusion
from fastddpm.schedule import NoiseSchedule
from fastddpm.train import TrainConfig
from fastddpm.train.loss import Batch, losses
from fastddpm.train.update import Update
from golden_groups import tensors


def run(case: dict[str, Any], inputs: dict[str, Any], ctx: Any) -> dict[str, np.ndarray] | None:
    config, given = case["config"], tensors(inputs)
    unet, _ = from_pretrained(inputs["model"]["path"])
    unet.train()
    schedule = NoiseSchedule.named(config["schedule"], config["T"])
    diffusion = GaussianDiffusion(schedule, variance=config["var"].lower())
    update = Update(_settings(config, unet.config), unet)
    reports = [f"grad_step0/{name}" for name in config["report"]]
    result: dict[str, Any] = {"loss_per_sample": [], "grad_norm_before_clip": []}
    # The stream of draws has no end of its own.
    for k, draw in zip(range(config["steps"]), ctx.noise(case), strict=False):
        batch = Batch(given["x_start"], given["t"][k], torch.tensor(draw), None)
        loss = losses(unet, diffusion, batch, "simple")
        loss.mean().backward()
        if k == 0:
            gradients = _openai(unet.config, {n: p.grad for n, p in unet.named_parameters()})
            result |= {name: gradients[name.split("/", 1)[1]] for name in reports}
            result["grad_step0_summary"] = _summary(case, gradients)
        result["loss_per_sample"].append(loss.detach().numpy())
        result["grad_norm_before_clip"].append(update.apply(k).numpy())
    for kind, network in (("param_after", unet), ("ema_after", update.ema.model)):
        state = _openai(unet.config, network.state_dict())
        result |= {f"{kind}/{name}": state[name] for name in config["report"]}
    return {name: np.asarray(value) for name, value in result.items()}


def _settings(config: dict[str, Any], unet: Any) -> TrainConfig:
    return TrainConfig(
        data="given",
        unet=unet,
        learning_rate=config["lr"],
        warmup_steps=0,
        clip_norm=config["clip_norm"],
        ema_decay=config["ema"],
        ema_warmup=False,
    )


def _openai(config: Any, state: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: t.detach().numpy() for name, t in to_openai(state, config).items()}


def _summary(case: dict[str, Any], gradients: dict[str, np.ndarray]) -> np.ndarray:
    """Of each parameter, in the case's order: the gradient's norm, and its product with a draw."""
    rows = []
    for name in case["outputs"]["grad_step0_summary"]["rows"]:
        gradient = gradients[name].astype(np.float64)
        seed = (7 * 1000003 + zlib.crc32(name.encode())) & 0xFFFFFFFF
        draw = np.random.RandomState(seed).standard_normal(gradient.shape)
        rows.append((np.linalg.norm(gradient), (gradient * draw).sum()))
    # The gradients are float32, and are judged as such.
    return np.array(rows, np.float32)
