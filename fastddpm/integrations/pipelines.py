"""Accelerated DDPM and DDIM pipelines: diffusers' classes, saved as what was accelerated."""

from __future__ import annotations

from typing import Any

from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler

# diffusers' class of each scheduler that may be in its place.
_PLAIN = {"FastDDPMScheduler": DDPMScheduler, "FastDDIMScheduler": DDIMScheduler}


class SavedAsSource:
    """A pipeline whose ``unet`` is an Accelerated one."""

    unet: Any
    scheduler: Any

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """diffusers' own, of the pipeline that was accelerated: its network and its scheduler.

        What ``from_pretrained`` reads is diffusers' pipeline, to be accelerated again. Its
        scheduler is diffusers' class, which has no ``compatibility``: an "exact" one is not saved
        as such.
        """
        plain = _PLAIN.get(type(self.scheduler).__name__)
        scheduler = self.scheduler
        if plain is not None:
            config = {name: v for name, v in scheduler.config.items() if name != "compatibility"}
            scheduler = plain.from_config(config)
        kind = DDIMPipeline if isinstance(self, DDIMPipeline) else DDPMPipeline
        source = kind(unet=getattr(self.unet, "source", self.unet), scheduler=scheduler)
        # Not given to its constructor: DDIMPipeline's makes a DDIMScheduler of whatever it gets.
        source.register_modules(scheduler=scheduler)
        return source.save_pretrained(*args, **kwargs)


class FastDDPMPipeline(SavedAsSource, DDPMPipeline):  # type: ignore[misc]
    """DDPMPipeline, its network and its scheduler accelerated."""


class FastDDIMPipeline(SavedAsSource, DDIMPipeline):  # type: ignore[misc]
    """DDIMPipeline, its network and its scheduler accelerated."""
