"""Noise schedules, their tables, respaced subsets and timestep lists."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastddpm import timesteps
from fastddpm.schedule import NoiseSchedule

# What a peer calls its schedule, where the library calls it something else.
_NAMES = {
    "improved-diffusion": {"linear": "openai_linear"},
    "latent-diffusion": {"linear": "scaled_linear"},
    "lucidrains": {"linear": "openai_linear", "sigmoid": "sigmoid_alpha_bar"},
}
_WITHOUT_ENDS = ("cosine", "laplace", "squaredcos_cap_v2", "jsd", "openai_linear")


def run(case: dict[str, Any], inputs: dict[str, Any], ctx: Any) -> dict[str, np.ndarray]:
    config = case["config"]
    if "num_train_timesteps" in config and "n" in config:
        return _timestep_lists(case)
    if "section_counts" in config:
        chosen = timesteps.openai_sections(config["T"], config["section_counts"])
        schedule = named(case["peer"], config).respace(chosen)
    elif case["peer"] == "diffusers":
        schedule = diffusers(config)
    else:
        schedule = named(case["peer"], config)
    tables = {name: getattr(schedule, name) for name in case["outputs"] if name in _TABLES}
    return {name: table.numpy() for name, table in tables.items()} | {
        "timestep_map": schedule.timesteps.numpy()
    }


def named(peer: str, config: dict[str, Any]) -> NoiseSchedule:
    """A peer's schedule by that peer's name."""
    name = config["schedule"]
    name = _NAMES.get(peer, {}).get(name, name)
    ends = {"beta_end"} if name == "const" else {"beta_start", "beta_end"}
    if name in _WITHOUT_ENDS or name == "sigmoid_alpha_bar":
        ends = set()
    return NoiseSchedule.named(name, config["T"], **{k: config[k] for k in ends if k in config})


def diffusers(config: dict[str, Any]) -> NoiseSchedule:
    """The schedule of a DDPMScheduler config."""
    T = config.get("num_train_timesteps", 1000)
    name = config.get("beta_schedule", "linear")
    if config.get("trained_betas") is not None:
        schedule = NoiseSchedule.from_betas(config["trained_betas"])
    elif name in _WITHOUT_ENDS:
        schedule = NoiseSchedule.named(name, T)
    else:
        start, end = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
        schedule = NoiseSchedule.named(name, T, beta_start=start, beta_end=end)
    if config.get("rescale_betas_zero_snr"):
        schedule = schedule.rescale_zero_terminal_snr()
    return schedule


def _timestep_lists(case: dict[str, Any]) -> dict[str, np.ndarray]:
    """Keys like "leading/n50/offset1"; descending, as diffusers has them."""
    T = case["config"]["num_train_timesteps"]
    lists = {}
    for key in case["outputs"]:
        spacing, n, offset = key.split("/")
        count = int(n.removeprefix("n"))
        if spacing == "leading":
            chosen = timesteps.leading(T, count, int(offset.removeprefix("offset")))
        else:
            chosen = timesteps.spaced(spacing, T, count)
        lists[key] = chosen.flip(0).numpy()
    return lists


_TABLES = (
    "betas",
    "alphas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
)
