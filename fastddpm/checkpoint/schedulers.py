"""scheduler_config.json: a GaussianDiffusion as the settings of diffusers' DDPMScheduler.

Read: DDPMScheduler and DDIMScheduler, for what they say of the process (betas, prediction,
variance, clipping). How many steps a scheduler takes is a choice of sampling and is not read.

Written: a DDPMScheduler. What it has no setting for stands under the key "fastddpm". Where it
would then compute something else, the beta schedule is given a name that diffusers refuses, so
that a file is read rightly or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastddpm.checkpoint.conform import conform
from fastddpm.checkpoint.limits import check_steps
from fastddpm.diffusion import GaussianDiffusion
from fastddpm.schedule import NoiseSchedule

OURS = "fastddpm"
REFUSED = "fastddpm.from_pretrained only: "
CLASSES = (
    *("DDPMScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDIMParallelScheduler"),
    # Of integrations/schedulers.py.
    *("FastDDPMScheduler", "FastDDIMScheduler"),
)
SCHEDULES = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "squaredcos_cap_v2": "cosine",
    "sigmoid": "sigmoid",
    "laplace": "laplace",
}
VARIANCES = {
    "fixed_small": "fixed_small",
    # exp(log(variance)/2) as a standard deviation: fixed_small by a longer way.
    "fixed_small_log": "fixed_small",
    "fixed_large": "fixed_large",
    "learned_range": "learned_range",
}
# Settings of sampling with fewer steps, of other schedulers' steps, or of nothing any more.
_NOT_THE_PROCESS = {
    "timestep_spacing",
    "steps_offset",
    "set_alpha_to_one",
    "dynamic_thresholding_ratio",
    "sample_max_value",
    "skip_prk_steps",
    "tensor_format",
    "compatibility",
    "timestep_values",
}


@dataclass(frozen=True)
class SchedulerConfig:
    """What a DDPMScheduler's config says of the process; names and defaults are diffusers'."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: tuple[float, ...] | None = None
    variance_type: str = "fixed_small"
    clip_sample: bool = True
    clip_sample_range: float = 1.0
    prediction_type: str = "epsilon"
    thresholding: bool = False
    rescale_betas_zero_snr: bool = False
    # Before prediction_type: False meant "sample".
    predict_epsilon: bool | None = None


@dataclass(frozen=True)
class Exact:
    """What DDPMScheduler has no setting for; None: as its settings say."""

    betas: tuple[float, ...] | None = None
    timesteps: tuple[int, ...] | None = None
    prediction: str | None = None
    variance: str | None = None
    last_step_noise: str = "none"
    timestep_scale: float | None = None


def read_scheduler(
    values: Mapping[str, Any], source: str, *, doubled: bool = False
) -> GaussianDiffusion:
    """The process that a scheduler_config.json describes.

    Args:
        values: the JSON object.
        source: its file, for messages.
        doubled: the network has two outputs per channel, so its variance is learned even if the
            scheduler (DDIM) does not say so.

    Raises:
        ValueError: a setting that is unknown, or that stands for something not offered here.
    """
    name = values.get("_class_name", "DDPMScheduler")
    if name not in (*CLASSES, "fastddpm.GaussianDiffusion"):
        raise ValueError(f"{source}: expected a scheduler in {', '.join(CLASSES)}, found {name!r}")
    known = {k: v for k, v in values.items() if k in SchedulerConfig.__dataclass_fields__}
    unknown = [
        key
        for key, value in values.items()
        if not (key in known or key in _NOT_THE_PROCESS or key[0:1] == "_" or key == OURS)
        and value is not None
    ]
    if unknown:
        raise ValueError(f"{source}: unknown scheduler settings {', '.join(unknown)}")
    config = conform(SchedulerConfig, known, source)
    ours = values.get(OURS, {})
    if not isinstance(ours, dict) or not ours.keys() <= Exact.__dataclass_fields__.keys():
        fields = ", ".join(Exact.__dataclass_fields__)
        raise ValueError(
            f"{source}: {OURS}: expected an object with keys of {fields}, found {ours!r}"
        )
    exact = conform(Exact, ours, f"{source}: {OURS}")
    variance = _variance(config, source) if exact.variance is None else exact.variance
    if doubled and "variance_type" not in values and exact.variance is None:
        variance = "learned_range"
    return GaussianDiffusion(
        _schedule(config, exact, source),
        prediction=_prediction(config) if exact.prediction is None else exact.prediction,
        variance=variance,
        clip=config.clip_sample_range if _clips(config, source) else None,
        last_step_noise=exact.last_step_noise,
        timestep_scale=exact.timestep_scale,
    )


def read_betas(values: Mapping[str, Any], source: str) -> Tensor:
    """The betas alone, float64 [T], of a scheduler's config; the rest of it may be anything.

    Raises ValueError as `read_scheduler` does.
    """
    names = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
    known = {k: values[k] for k in (*names, "rescale_betas_zero_snr") if k in values}
    if known.get("trained_betas") is not None:
        known["trained_betas"] = [float(beta) for beta in known["trained_betas"]]
    return _schedule(conform(SchedulerConfig, known, source), Exact(), source).betas


def _schedule(config: SchedulerConfig, exact: Exact, source: str) -> NoiseSchedule:
    if exact.timesteps is not None and exact.betas is None:
        raise ValueError(f"{source}: {OURS}: timesteps expected betas beside them, found none")
    betas = config.trained_betas if exact.betas is None else exact.betas
    T = config.num_train_timesteps
    check_steps(T, source)
    if betas is not None:
        if exact.betas is None and len(betas) != T:
            raise ValueError(
                f"{source}: expected {T} (num_train_timesteps) trained_betas, found {len(betas)}"
            )
        schedule = NoiseSchedule.from_betas(betas, exact.timesteps)
    else:
        if config.beta_schedule not in SCHEDULES:
            known = ", ".join(SCHEDULES)
            raise ValueError(
                f"{source}: expected a beta_schedule in {known}, found {config.beta_schedule!r}"
            )
        ends = {"beta_start": config.beta_start, "beta_end": config.beta_end}
        takes_ends = config.beta_schedule in ("linear", "scaled_linear", "sigmoid")
        name = SCHEDULES[config.beta_schedule]
        schedule = NoiseSchedule.named(name, T, **(ends if takes_ends else {}))
    return schedule.rescale_zero_terminal_snr() if config.rescale_betas_zero_snr else schedule


def _prediction(config: SchedulerConfig) -> str:
    return "sample" if config.predict_epsilon is False else config.prediction_type


def _variance(config: SchedulerConfig, source: str) -> str:
    if config.variance_type in VARIANCES:
        return VARIANCES[config.variance_type]
    reasons = {
        "learned": "diffusers takes the output as σ² itself, OpenAI as log σ²: it is not read; "
        'for a network that learned log σ², build GaussianDiffusion(variance="learned")',
        "fixed_large_log": "diffusers takes the root of log β there, which is NaN; use fixed_large",
    }
    reason = reasons.get(config.variance_type, f"expected one of {', '.join(VARIANCES)}")
    raise ValueError(f"{source}: variance_type {config.variance_type!r}: {reason}")


def _clips(config: SchedulerConfig, source: str) -> bool:
    if config.thresholding:
        raise ValueError(
            f"{source}: thresholding=true clips by a quantile of each sample, which is not offered "
            "here; set it to false to clip at clip_sample_range"
        )
    return config.clip_sample


def write_scheduler(diffusion: GaussianDiffusion) -> dict[str, Any]:
    """The scheduler_config.json of a process; `read_scheduler` gives equal tables, bit for bit."""
    schedule = diffusion.schedule
    config: dict[str, Any] = {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": len(schedule),
        **_betas(schedule),
        "variance_type": diffusion.variance,
        "clip_sample": diffusion.clip is not None,
        "clip_sample_range": 1.0 if diffusion.clip is None else float(diffusion.clip),
        "prediction_type": diffusion.prediction,
    }
    ours: dict[str, Any] = {}
    if diffusion.last_step_noise != "none":
        ours["last_step_noise"] = diffusion.last_step_noise
    reasons = _beyond_diffusers(diffusion)
    if reasons:
        config["_class_name"] = "fastddpm.GaussianDiffusion"
        config["beta_schedule"] = REFUSED + ", ".join(reasons)
        config["trained_betas"] = None
        ours |= {
            "betas": schedule.betas.tolist(),
            "timesteps": schedule.timesteps.tolist(),
            "prediction": diffusion.prediction,
            "variance": diffusion.variance,
            "timestep_scale": diffusion.timestep_scale,
        }
    return config | ({OURS: ours} if ours else {})


def _beyond_diffusers(diffusion: GaussianDiffusion) -> list[str]:
    """Why DDPMScheduler would compute something else; empty if it would not."""
    timesteps = diffusion.schedule.timesteps
    reasons = []
    if not torch.equal(timesteps, torch.arange(len(timesteps))):
        reasons.append("respaced timesteps")
    if diffusion.timestep_scale is not None:
        reasons.append(f"timestep_scale={diffusion.timestep_scale}")
    if diffusion.prediction == "previous_sample":
        reasons.append("prediction=previous_sample")
    if diffusion.variance == "learned":
        reasons.append("variance=learned (as a logarithm)")
    return reasons


def _betas(schedule: NoiseSchedule) -> dict[str, Any]:
    """The settings that name these betas exactly, else the betas themselves."""
    betas, T = schedule.betas, len(schedule)
    # scaled_linear squares a root, which moves the last bit of its ends.
    exact, rounded = ([f(float(b)) for b in (betas[0], betas[-1])] for f in (float, _round))
    for name, ends in (("linear", exact), ("scaled_linear", rounded), ("squaredcos_cap_v2", None)):
        settings = {} if ends is None else dict(zip(("beta_start", "beta_end"), ends, strict=True))
        if torch.equal(NoiseSchedule.named(SCHEDULES[name], T, **settings).betas, betas):
            return {"beta_schedule": name, "trained_betas": None, **settings}
    return {"beta_schedule": "linear", "trained_betas": betas.tolist()}


def _round(value: float) -> float:
    return float(f"{value:.12g}")
