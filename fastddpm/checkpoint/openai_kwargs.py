"""OpenAI's keyword arguments of a network and of its process, as ours and back.

Two levels of them exist, and both are read:

    UNetModel(...)                   model_channels, channel_mult=(1, 2), attention_resolutions=(2,)
                                     as downsampling rates, num_classes, out_channels, ...
    create_model_and_diffusion(...)  num_channels, channel_mult="1,2", attention_resolutions="16,8"
                                     in pixels, class_cond, learn_sigma, ... (the scripts' flags)

The process has the same arguments beside either: diffusion_steps, noise_schedule, learn_sigma,
sigma_small, predict_xstart, rescale_timesteps, timestep_respacing. A missing argument has OpenAI's
default, but for rescale_timesteps, where improved-diffusion's (True) and guided-diffusion's
(False) differ: with other than 1000 steps it must be said.

Source: openai/improved-diffusion and openai/guided-diffusion, script_util.py and unet.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from fastddpm.checkpoint.conform import conform
from fastddpm.checkpoint.limits import MAX_WIDTH, check_steps
from fastddpm.diffusion import GaussianDiffusion
from fastddpm.schedule import NoiseSchedule
from fastddpm.timesteps import openai_sections
from fastddpm.unet import UNetConfig

GROUPS, EPS = 32, 1e-5
IMAGENET_CLASSES = 1000
CHANNEL_MULT: dict[int, tuple[float, ...]] = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
    32: (1, 2, 2, 2),
}
# How the network is trained or computed, not what it computes.
_NOT_THE_MODEL = {"use_checkpoint", "use_fp16", "use_kl", "rescale_learned_sigmas"}


@dataclass(frozen=True)
class UNetModel:
    """Arguments of UNetModel; defaults are OpenAI's, and -1 means "not given" as there."""

    model_channels: int
    num_res_blocks: int
    attention_resolutions: tuple[int, ...]
    in_channels: int = 3
    out_channels: int = 3
    image_size: int | None = None
    dropout: float = 0.0
    channel_mult: tuple[float, ...] = (1, 2, 4, 8)
    conv_resample: bool = True
    dims: int = 2
    num_classes: int | None = None
    num_heads: int = 1
    num_head_channels: int = -1
    num_heads_upsample: int = -1
    use_scale_shift_norm: bool = False
    resblock_updown: bool = False
    use_new_attention_order: bool = False


@dataclass(frozen=True)
class Script:
    """Arguments of create_model_and_diffusion that are the network's."""

    image_size: int = 64
    num_channels: int = 128
    num_res_blocks: int = 2
    num_heads: int = 4
    num_heads_upsample: int = -1
    num_head_channels: int = -1
    attention_resolutions: str | tuple[int, ...] = "16,8"
    channel_mult: str | tuple[float, ...] = ""
    dropout: float = 0.0
    class_cond: bool = False
    use_scale_shift_norm: bool = True
    resblock_updown: bool = False
    use_new_attention_order: bool = False


@dataclass(frozen=True)
class Process:
    """Arguments of create_gaussian_diffusion; learn_sigma None: as the network's channels say."""

    diffusion_steps: int = 1000
    noise_schedule: str = "linear"
    timestep_respacing: str | tuple[int, ...] = ""
    learn_sigma: bool | None = None
    sigma_small: bool = False
    predict_xstart: bool = False
    rescale_timesteps: bool | None = None


def read_kwargs(kwargs: Mapping[str, Any], source: str) -> tuple[UNetModel, Process]:
    """The arguments of either level, checked.

    Raises:
        ValueError: an argument is unknown, of the wrong type, or missing where it has no default.
    """
    process_names = {f.name for f in fields(Process)}
    is_script = "model_channels" not in kwargs
    model_names = {f.name for f in fields(Script if is_script else UNetModel)}
    unknown = kwargs.keys() - process_names - model_names - _NOT_THE_MODEL
    if unknown:
        raise ValueError(
            f"{source}: unknown arguments {', '.join(sorted(unknown))}; expected those of "
            "UNetModel (with model_channels) or of create_model_and_diffusion (with num_channels)"
        )
    process = conform(Process, {k: v for k, v in kwargs.items() if k in process_names}, source)
    values = {k: v for k, v in kwargs.items() if k in model_names}
    if is_script:
        model = _from_script(conform(Script, values, source), process, source)
    else:
        model = conform(UNetModel, values, source)
    doubled = model.out_channels == 2 * model.in_channels
    if process.learn_sigma not in (None, doubled):
        raise ValueError(
            f"{source}: learn_sigma={process.learn_sigma} does not fit in_channels="
            f"{model.in_channels}, out_channels={model.out_channels}"
        )
    return model, replace(process, learn_sigma=doubled)


def _from_script(script: Script, process: Process, source: str) -> UNetModel:
    mult = script.channel_mult or CHANNEL_MULT.get(script.image_size)
    if not mult:
        sizes = ", ".join(map(str, CHANNEL_MULT))
        raise ValueError(
            f"{source}: image_size={script.image_size} needs channel_mult; without it the sizes "
            f"are {sizes}"
        )
    pixels = _numbers(script.attention_resolutions, f"{source}: attention_resolutions")
    if any(p < 1 for p in pixels):
        raise ValueError(f"{source}: attention_resolutions must be pixels >= 1, got {pixels}")
    shared = {f.name for f in fields(UNetModel)} & {f.name for f in fields(Script)}
    values = {name: getattr(script, name) for name in shared}
    return UNetModel(
        **values
        | {
            "model_channels": script.num_channels,
            "attention_resolutions": tuple(script.image_size // int(p) for p in pixels),
            "channel_mult": _numbers(mult, f"{source}: channel_mult"),
            "num_classes": IMAGENET_CLASSES if script.class_cond else None,
            "out_channels": 6 if process.learn_sigma else 3,
        }
    )


def _numbers(value: str | tuple[float, ...], name: str) -> tuple[float, ...]:
    """ "16,8" or (16, 8) -> (16, 8)."""
    if not isinstance(value, str):
        return value
    try:
        numbers = tuple(float(part) for part in value.split(",") if part.strip())
    except ValueError:
        numbers = (math.nan,)
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{name}: expected numbers with commas between, found {value!r}")
    return numbers


def unet_config(model: UNetModel) -> UNetConfig:
    """The same network as a UNetConfig."""
    widths = [mult * model.model_channels for mult in model.channel_mult]
    if not widths or not all(1 <= width < MAX_WIDTH for width in widths):
        raise ValueError(f"expected 1 to {MAX_WIDTH} channels on every level, found {widths}")
    channels = tuple(int(width) for width in widths)
    attends = [2**level in model.attention_resolutions for level in range(len(channels))]
    learned = "resnet" if model.resblock_updown else "conv"
    resampled = model.resblock_updown or model.conv_resample
    heads: dict[str, Any] = {"attention_head_dim": model.num_head_channels}
    if model.num_head_channels == -1:
        upsample = None if model.num_heads_upsample == -1 else model.num_heads_upsample
        heads = {"num_attention_heads": model.num_heads, "num_attention_heads_upsample": upsample}
    return UNetConfig(
        sample_size=model.image_size,
        in_channels=model.in_channels,
        out_channels=model.out_channels,
        down_block_types=_types("Down", attends, model.resblock_updown),
        up_block_types=_types("Up", attends[::-1], model.resblock_updown),
        block_out_channels=channels,
        layers_per_block=model.num_res_blocks,
        downsample_type=learned if resampled else "pool",
        upsample_type=learned if resampled else "nearest",
        dropout=model.dropout,
        norm_num_groups=GROUPS,
        norm_eps=EPS,
        # The middle attention is normalised whatever the residual blocks do.
        attn_norm_num_groups=GROUPS if model.use_scale_shift_norm else None,
        resnet_time_scale_shift="scale_shift" if model.use_scale_shift_norm else "default",
        num_class_embeds=model.num_classes,
        dims=model.dims,
        time_proj_dim=model.model_channels if channels[0] != model.model_channels else None,
        **heads,
    )


def _types(way: str, attends: list[bool], resblock_updown: bool) -> tuple[str, ...]:
    plain = f"Resnet{way}sampleBlock2D" if resblock_updown else f"{way}Block2D"
    return tuple(f"Attn{way}Block2D" if attend else plain for attend in attends)


def diffusion_of(process: Process, source: str) -> GaussianDiffusion:
    """The same process as a GaussianDiffusion.

    Raises:
        ValueError: an unknown schedule, a respacing that does not fit, or timesteps that may be
            rescaled or not.
    """
    makers = {"linear": NoiseSchedule.openai_linear, "cosine": NoiseSchedule.cosine}
    steps = process.diffusion_steps
    if process.noise_schedule not in makers:
        raise ValueError(
            f"{source}: expected noise_schedule linear or cosine, found {process.noise_schedule!r}"
        )
    if process.rescale_timesteps is None and steps != 1000:
        raise ValueError(
            f"{source}: diffusion_steps={steps} needs rescale_timesteps: improved-diffusion's "
            "default is true, guided-diffusion's false"
        )
    check_steps(steps, source)
    schedule = makers[process.noise_schedule](steps)
    if process.timestep_respacing:
        schedule = schedule.respace(openai_sections(steps, process.timestep_respacing))
    fixed = "fixed_small" if process.sigma_small else "fixed_large"
    return GaussianDiffusion(
        schedule,
        prediction="sample" if process.predict_xstart else "epsilon",
        variance="learned_range" if process.learn_sigma else fixed,
        timestep_scale=1000 / steps if process.rescale_timesteps and steps != 1000 else None,
    )
