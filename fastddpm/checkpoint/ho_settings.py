"""The process of a network of Ho's family, from the settings that its code writes or fixes.

Ho's training leaves them in kwargs.json beside the checkpoints; the ports take the same names in
Python or YAML. Where nothing is said, they are those of every published network: 1000 linear steps,
ε, and the variance that each was sampled with:

    256 × 256 (channels 1, 1, 2, 2, 4, 4)    fixed_small    run_lsun.py, run_celebahq.py
    all others                               fixed_large    run_cifar.py; ddpm_steps of ermongroup

Source: hojonathanho/diffusion, scripts/; pesser's diffusion.py; ermongroup's configs/.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from fastddpm.checkpoint.conform import conform
from fastddpm.checkpoint.limits import check_steps
from fastddpm.diffusion import GaussianDiffusion
from fastddpm.schedule import NoiseSchedule
from fastddpm.unet import UNetConfig

SCHEDULES = ("linear", "quad", "warmup10", "warmup50", "const", "jsd", "sigmoid")
PREDICTIONS = {"eps": "epsilon", "xstart": "sample", "xprev": "previous_sample"}
VARIANCES = {"fixedlarge": "fixed_large", "fixedsmall": "fixed_small", "learned": "learned"}
SMALL_VARIANCE = (1, 1, 2, 2, 4, 4)
# How a network is trained, or what its shapes say anyway.
_NOT_THE_PROCESS = {
    *("exp_name", "tpu_name", "bucket_name_prefix", "region", "log_dir", "tfds_data_dir"),
    *("tfr_file", "model_name", "dataset", "optimizer", "total_bs", "grad_clip", "lr", "warmup"),
    *("loss_type", "randflip", "keep_checkpoint_max", "warm_start_model_dir"),
    *("in_channels", "out_ch", "ch", "ch_mult", "num_res_blocks", "attn_resolutions"),
    "resamp_with_conv",
}


@dataclass(frozen=True)
class HoSettings:
    """Names and defaults of Ho's code; `resolution` is the ports', in pixels."""

    beta_schedule: str = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    num_diffusion_timesteps: int = 1000
    model_mean_type: str = "eps"
    model_var_type: str | None = None
    dropout: float = 0.0
    block_size: int = 1
    resolution: int | None = None


def read_ho_settings(kwargs: Mapping[str, Any], source: str) -> HoSettings:
    """Raises ValueError for a name or value that Ho's code and its ports do not have."""
    names = {field.name for field in fields(HoSettings)}
    unknown = kwargs.keys() - names - _NOT_THE_PROCESS
    if unknown:
        raise ValueError(
            f"{source}: unknown settings {', '.join(sorted(unknown))}; expected those of Ho's "
            f"code: {', '.join(sorted(names))}"
        )
    settings = conform(HoSettings, {k: v for k, v in kwargs.items() if k in names}, source)
    if settings.block_size != 1:
        raise ValueError(
            f"{source}: block_size={settings.block_size} turns blocks of pixels into channels "
            "around the network, which is not offered here; expected 1"
        )
    for name, known in (
        ("beta_schedule", SCHEDULES),
        ("model_mean_type", PREDICTIONS),
        ("model_var_type", (None, *VARIANCES)),
    ):
        if getattr(settings, name) not in known:
            expected = ", ".join(map(str, known))
            raise ValueError(f"{source}: {name}: expected {expected}, found {kwargs[name]!r}")
    check_steps(settings.num_diffusion_timesteps, source)
    return settings


def ho_process(settings: HoSettings, config: UNetConfig, source: str) -> GaussianDiffusion:
    """The process of a network with these settings.

    Raises ValueError if the variance and the network's number of outputs disagree.
    """
    doubled = config.out_channels == 2 * config.in_channels
    name = settings.model_var_type or ("learned" if doubled else _sampled_with(config))
    if (name == "learned") != doubled:
        raise ValueError(
            f"{source}: model_var_type={name!r} does not fit {config.in_channels} input and "
            f"{config.out_channels} output channels"
        )
    ends = {"beta_start": settings.beta_start, "beta_end": settings.beta_end}
    if settings.beta_schedule == "const":
        del ends["beta_start"]
    if settings.beta_schedule == "jsd":
        ends = {}
    return GaussianDiffusion(
        NoiseSchedule.named(settings.beta_schedule, settings.num_diffusion_timesteps, **ends),
        prediction=PREDICTIONS[settings.model_mean_type],
        variance=VARIANCES[name],
    )


def _sampled_with(config: UNetConfig) -> str:
    multiples = tuple(c / config.block_out_channels[0] for c in config.block_out_channels)
    return "fixedsmall" if multiples == SMALL_VARIANCE else "fixedlarge"
