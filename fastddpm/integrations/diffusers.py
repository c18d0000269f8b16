"""diffusers' UNet2DModel, an instance in memory -> our U-Net, and drop-ins: for it, and schedulers.

FastDDPMScheduler and FastDDIMScheduler derive from diffusers' classes, so they are made where
diffusers is imported: in schedulers.py, when somebody asks for one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastddpm.checkpoint.diffusers import current_names, read_config
from fastddpm.checkpoint.fit import DIFFUSERS_SWITCHES, check_fit, fill, shapes, skeleton
from fastddpm.integrations.accelerated import Accelerated
from fastddpm.unet import UNet

CLASS = "UNet2DModel"
# What accelerate makes of each pipeline, its own among them.
PIPELINES = {"DDPMPipeline": "FastDDPMPipeline", "DDIMPipeline": "FastDDIMPipeline"}
OWN_PIPELINES = {name: name for name in PIPELINES.values()}
COUNTER_PIPELINE = "CounterDDPMPipeline"
DDPM = ("DDPMScheduler", "FastDDPMScheduler")
SCHEDULERS = {"DDPMScheduler": "FastDDPMScheduler", "DDIMScheduler": "FastDDIMScheduler"}


def __getattr__(name: str) -> Any:
    """The schedulers, by name.

    Raises ImportError without diffusers.
    """
    if name not in SCHEDULERS.values():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from fastddpm.integrations import schedulers
    except ModuleNotFoundError as error:
        if error.name != "diffusers":
            raise
        raise ImportError(f"{name} derives from diffusers' class: pip install diffusers") from error
    return getattr(schedulers, name)


def fast_scheduler(scheduler: Any) -> Any:
    """A scheduler that steps as this one, faster; itself if it is not one of SCHEDULERS, or if its
    betas are no longer those of its config."""
    name = type(scheduler).__name__
    if not (_is_of_diffusers(scheduler) and name in SCHEDULERS):
        return scheduler
    fast = __getattr__(SCHEDULERS[name]).from_config(scheduler.config)
    same = torch.equal(fast.alphas_cumprod, scheduler.alphas_cumprod.cpu())
    return fast if same else scheduler


def fast_pipeline(pipeline: Any, network: nn.Module) -> Any:
    """The pipeline with this network and its scheduler accelerated."""
    from fastddpm.integrations import pipelines

    name = type(pipeline).__name__
    kind = getattr(pipelines, (PIPELINES | OWN_PIPELINES)[name])
    made = kind(unet=network, scheduler=pipeline.scheduler)
    # Not given to its constructor: DDIMPipeline's makes a DDIMScheduler of whatever it gets.
    made.register_modules(scheduler=fast_scheduler(made.scheduler))
    return _with_bar(made, pipeline)


def _with_bar(made: Any, pipeline: Any) -> Any:
    """``made``, its progress bars set as the pipeline's."""
    made.set_progress_bar_config(**getattr(pipeline, "_progress_bar_config", {}))
    return made


def check_for_counter_noise(model: Any) -> None:
    """ValueError unless this is a DDPMPipeline with a DDPMScheduler."""
    name = type(model).__name__
    scheduler = type(getattr(model, "scheduler", None)).__name__
    taken = name == "FastDDPMPipeline" or (_is_of_diffusers(model) and name == "DDPMPipeline")
    if not (taken and scheduler in DDPM):
        beside = f" with a {scheduler}" if name in PIPELINES else ""
        raise ValueError(
            f"noise='counter' is of a DDPMPipeline with a DDPMScheduler, got a {name}{beside}; a "
            "fastddpm.Sampler makes images of counter noise by every method"
        )


def counter_pipeline(network: nn.Module, pipeline: Any, settings: dict[str, Any]) -> Any:
    """The pipeline of counter_pipeline.py; settings: of its Sampler.

    Raises ValueError for settings that no Sampler offers, or betas that are not the config's.
    """
    from fastddpm.integrations.counter_pipeline import CounterDDPMPipeline

    return _with_bar(CounterDDPMPipeline.of(network, pipeline.scheduler, settings), pipeline)


def counter_scheduler(scheduler: Any) -> Any:
    """A scheduler whose config tells all steps of a CounterDDPMPipeline.

    Raises ValueError for another one than DDPM's, or for betas that are not its config's.
    """
    fast = fast_scheduler(scheduler)
    name = type(scheduler).__name__
    if name not in DDPM:
        raise ValueError(f"expected a {' or '.join(DDPM)}, whose steps a Sampler has, got a {name}")
    if fast is scheduler and not (name == DDPM[1] and _has_its_configs_betas(fast)):
        raise ValueError("expected the scheduler's betas to be those of its config, got others")
    return fast


def _has_its_configs_betas(scheduler: Any) -> bool:
    own = type(scheduler).from_config(scheduler.config)
    return all(
        torch.equal(getattr(own, name), getattr(scheduler, name).cpu())
        for name in ("betas", "alphas_cumprod")
    )


def is_diffusers_model(model: nn.Module) -> bool:
    """Whether this is a UNet2DModel itself; what derives from it may compute something else."""
    return _is_of_diffusers(model) and type(model).__name__ == CLASS


def is_pipeline(model: object) -> bool:
    """Whether this is a pipeline that calls nothing but ``unet`` and ``scheduler``.

    Raises ValueError for any other pipeline.
    """
    name = type(model).__name__
    if name in OWN_PIPELINES:
        return True
    own = name == COUNTER_PIPELINE
    if not (own or (_is_of_diffusers(model) and name.endswith("Pipeline"))):
        return False
    if own:
        raise ValueError(
            f"expected a {' or '.join(PIPELINES)}, got a {name}, which is accelerated: accelerate "
            "the pipeline that it was made of, or its unet"
        )
    if name not in PIPELINES:
        raise ValueError(f"expected a {' or '.join(PIPELINES)}, got a {name}: give its network")
    return True


def _is_of_diffusers(model: object) -> bool:
    return type(model).__module__.partition(".")[0] == "diffusers"


class DiffusersReader:
    """Reads a UNet2DModel: its configuration once, its weights whenever asked.

    Raises ValueError for blocks or settings that our U-Net does not have.
    """

    def __init__(self, model: nn.Module) -> None:
        instance: Any = model
        self.config = read_config(dict(instance.config), f"this {CLASS}'s config")
        check_fit(self.weights(model), shapes(self.config), f"this {CLASS}", DIFFUSERS_SWITCHES)

    def weights(self, model: nn.Module) -> Mapping[str, Tensor]:
        """Its state dict under our names."""
        return current_names(model.state_dict())

    def unet(self, model: nn.Module) -> UNet:
        """The same network, float32."""
        return fill(skeleton(self.config), self.weights(model))


class AcceleratedUNet2DModel(Accelerated):
    """Called as a UNet2DModel, answering as one."""

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """A UNet2DOutput, or with return_dict=False a tuple of the output alone.

        sample: [B, C, H, W]. timestep: [B] or one number. class_labels: [B] if it has classes.
        """
        output = super().forward(sample, timestep, class_labels)
        if not return_dict:
            return (output,)
        from diffusers.models.unets.unet_2d import UNet2DOutput

        return UNet2DOutput(sample=output)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which a pipeline hands over its samples: the source's."""
        dtype: torch.dtype = self.source.dtype
        return dtype
