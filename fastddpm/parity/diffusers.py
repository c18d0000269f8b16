"""Ours beside diffusers', as it is installed: what `accelerate` and the fast schedulers stand for.

Every comparison hands both the same inputs and generators of the same seed.
"""

from __future__ import annotations

import importlib.util
import itertools
import tempfile
from pathlib import Path
from typing import Any

import torch

from fastddpm.checkpoint import from_pretrained, save_pretrained
from fastddpm.integrations import accelerate
from fastddpm.parity.networks import add, image, randomised
from fastddpm.selfcheck.outcome import Bits, Check, Errors, Outcome, largest_difference, not_run

MISSING = "diffusers is not installed"
SMALL: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
}
NETWORKS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "Ho's": {
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
        "attention_head_dim": None,
    },
    "scale and shift": {"resnet_time_scale_shift": "scale_shift"},
    "resampling in blocks": {"downsample_type": "resnet", "upsample_type": "resnet"},
}
SPACINGS = ("leading", "linspace", "trailing")
PREDICTIONS = ("epsilon", "sample", "v_prediction")
VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large", "learned_range")
# Of a chain, and of 255: a rounding to the other side, and one more.
STEPS, LEVELS = 50, 2 / 255
SEED = 0


def checks() -> list[Check]:
    """All comparisons with diffusers."""
    compared = {
        "UNet2DModel, diffusers": networks,
        "DDPMScheduler, diffusers": ddpm,
        "DDIMScheduler, diffusers": ddim,
        "noise of a generator, diffusers": noise,
        "DDPMPipeline, diffusers": pipeline,
        "checkpoint there and back, diffusers": checkpoint,
    }
    if importlib.util.find_spec("diffusers") is None:
        return [not_run(name, MISSING) for name in compared]
    return [Check(name, compare) for name, compare in compared.items()]


def networks() -> Outcome:
    """UNet2DModel and its drop-in, small ones with random weights and the built-in one."""
    import diffusers

    errors = Errors()
    models = {
        name: randomised(diffusers.UNet2DModel(**SMALL | switches))
        for name, switches in NETWORKS.items()
    }
    for name, model in [*models.items(), ("built-in", _built_in_unet())]:
        x = image(model.config.in_channels, model.config.sample_size)
        fast = accelerate(model)
        for t in (0, 400, 999):
            with torch.no_grad():
                expected = model(x, t).sample
            add(errors, f"{name}, t = {t}", fast(x, t).sample, expected)
    return errors.outcome("UNet2DModel, diffusers", "networks")


def ddpm() -> Outcome:
    """Steps of FastDDPMScheduler at the beginning, the middle and the end of chains."""
    import diffusers

    from fastddpm.integrations.schedulers import FastDDPMScheduler

    errors = Errors()
    for spacing, prediction, variance in itertools.product(SPACINGS, PREDICTIONS, VARIANCES):
        config = {
            "timestep_spacing": spacing,
            "prediction_type": prediction,
            "variance_type": variance,
        }
        both = FastDDPMScheduler(**config), diffusers.DDPMScheduler(**config)
        channels = 6 if variance == "learned_range" else 3
        _steps(errors, f"{spacing} {prediction} {variance}", *both, channels=channels)
    return errors.outcome("DDPMScheduler, diffusers", "steps")


def ddim() -> Outcome:
    """Steps of FastDDIMScheduler, with noise and without."""
    import diffusers

    from fastddpm.integrations.schedulers import FastDDIMScheduler

    errors = Errors()
    for spacing, prediction, eta in itertools.product(SPACINGS, PREDICTIONS, (0.0, 1.0)):
        config = {"timestep_spacing": spacing, "prediction_type": prediction}
        both = FastDDIMScheduler(**config), diffusers.DDIMScheduler(**config)
        _steps(errors, f"{spacing} {prediction} eta {eta:g}", *both, eta=eta)
    return errors.outcome("DDIMScheduler, diffusers", "steps")


def _steps(
    errors: Errors, case: str, fast: Any, theirs: Any, *, channels: int = 3, **call: float
) -> None:
    x, output = image(3, 8), image(channels, 8, 1)
    for scheduler in (fast, theirs):
        scheduler.set_timesteps(STEPS)
    for k in (0, STEPS // 2, STEPS - 1):
        expected, found = (
            scheduler.step(output, scheduler.timesteps[k], x, generator=_generator(), **call)
            for scheduler in (theirs, fast)
        )
        for name in ("prev_sample", "pred_original_sample"):
            add(errors, f"{case} {name} {k}", getattr(found, name), getattr(expected, name))


def noise() -> Outcome:
    """What a step leaves in a generator, and in each of a list of them: torch's own draws."""
    import diffusers

    from fastddpm.integrations.schedulers import FastDDPMScheduler

    bits = Bits()
    x = image(3, 8)
    for count in (1, 2):
        left = []
        for scheduler in (FastDDPMScheduler(), diffusers.DDPMScheduler()):
            generators = [_generator(k) for k in range(count)]
            given = generators if count > 1 else generators[0]
            # The mean is zero: what is left is sigma z.
            step = scheduler.step(0 * x, 500, 0 * x, generator=given)
            left.append((step.prev_sample, [one.get_state() for one in generators]))
        (own, states), (expected, theirs) = left
        bits.add(f"sigma z of {count}", own, expected)
        for k, (a, b) in enumerate(zip(states, theirs, strict=True)):
            bits.add(f"state {k} of {count}", a, b)
    return bits.outcome("noise of a generator, diffusers")


def pipeline() -> Outcome:
    """Images of the built-in model by a DDPMPipeline and by the accelerated one."""
    import diffusers

    errors = Errors()
    for variance in ("fixed_small", "fixed_large"):
        scheduler = diffusers.DDPMScheduler(variance_type=variance)
        theirs = diffusers.DDPMPipeline(_built_in_unet(), scheduler)
        expected, found = (_images(one) for one in (theirs, accelerate(theirs)))
        errors.add(variance, largest_difference(found, expected), LEVELS)
    return errors.outcome("DDPMPipeline, diffusers", f"{STEPS} steps of the built-in model")


def checkpoint() -> Outcome:
    """Our folder, read and written by diffusers, and read again: the same weights and steps."""
    import diffusers

    bits = Bits()
    unet, diffusion = from_pretrained("mnist")
    with tempfile.TemporaryDirectory() as temporary:
        first, second = Path(temporary) / "ours", Path(temporary) / "theirs"
        save_pretrained(first, unet, diffusion)
        _read(first).save_pretrained(second)
        diffusers.DDPMScheduler.from_pretrained(first).save_pretrained(second)
        again, process = from_pretrained(second)
    weights = again.state_dict()
    for name, tensor in unet.state_dict().items():
        bits.add(name, weights[name], tensor)
    bits.add("step table", process.step_table(), diffusion.step_table())
    return bits.outcome("checkpoint there and back, diffusers")


def _read(folder: Path) -> Any:
    """diffusers' network of a folder."""
    import diffusers

    return diffusers.UNet2DModel.from_pretrained(folder, low_cpu_mem_usage=False).eval()


def _built_in_unet() -> Any:
    """The built-in model as diffusers' network."""
    with tempfile.TemporaryDirectory() as temporary:
        save_pretrained(temporary, *from_pretrained("mnist"))
        return _read(Path(temporary))


def _images(made: Any) -> torch.Tensor:
    made.set_progress_bar_config(disable=True)
    settings = {"batch_size": 2, "num_inference_steps": STEPS, "output_type": "np"}
    return torch.from_numpy(made(generator=_generator(), **settings).images)


def _generator(seed: int = SEED) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
