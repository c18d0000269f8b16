"""CounterDDPMPipeline: a DDPMPipeline whose images a Sampler makes of the counter's noise.

The same call and the same output, but no loop through ``scheduler.step``: the engine runs the whole
chain, which draws its own noise. Image i of a seed depends on (seed, i) alone, whatever the batch
size, the number of threads and what else is drawn, and is ``Sampler.sample``'s image i.

    generator                       seed
    nothing drawn from it yet       the one it was made with: Generator().manual_seed(7) is seed 7
    drawn from                      a number drawn from it
    None                            a number drawn from torch's default generator

One number is drawn from the generator at each call, so a second call makes other images.

The steps are those of the scheduler's config, in float64 tables as ``compatibility="exact"`` has
them. With "diffusers" the last step adds noise where diffusers' does. Images are float32.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from diffusers import DDPMPipeline, ImagePipelineOutput
from torch import Tensor

from fastddpm.checkpoint.schedulers import read_scheduler
from fastddpm.diffusion import GaussianDiffusion
from fastddpm.integrations.diffusers import counter_scheduler
from fastddpm.integrations.pipelines import SavedAsSource
from fastddpm.sampler import Sampler
from fastddpm.sampler.arguments import positive
from fastddpm.sampler.threshold import Threshold

OUTPUT_TYPES = ("pil", "np", "pt")


class _Made(NamedTuple):
    """A sampler, and what it was made of."""

    sampler: Sampler
    unet: Any
    config: Any
    place: tuple[torch.device, torch.dtype]


class CounterDDPMPipeline(SavedAsSource, DDPMPipeline):  # type: ignore[misc]
    """unet: what ``accelerate`` makes of a UNet2DModel. scheduler: a FastDDPMScheduler, or a
    DDPMScheduler, in whose place a fast one is put; its betas must be those of its config."""

    def __init__(self, unet: Any, scheduler: Any) -> None:
        super().__init__(unet=unet, scheduler=scheduler)
        self._settings: dict[str, Any] = {}
        self._made: _Made | None = None

    @classmethod
    def of(cls, unet: Any, scheduler: Any, settings: dict[str, Any]) -> CounterDDPMPipeline:
        """settings: of its Sampler. ValueError if the Sampler cannot be."""
        pipeline = cls(unet=unet, scheduler=scheduler)
        pipeline._settings = settings
        pipeline._sampler()
        return pipeline

    def __call__(
        self,
        batch_size: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_inference_steps: int = 1000,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Images, as DDPMPipeline gives them.

        Args:
            batch_size: how many.
            generator: tells the seed, see above; of a list only one, as the images share a seed.
            num_inference_steps: 1 to the scheduler's num_train_timesteps.
            output_type: "pil", "np" (float32 [B, H, W, C]) or "pt" (float32 [B, C, H, W], on the
                network's device); in [0, 1].
            return_dict: an ImagePipelineOutput, else a tuple of its images alone.

        Raises:
            ValueError: other arguments than these, before anything is drawn.
            FloatingPointError: NaN or Inf in the chain; names the timestep.
        """
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"expected an output_type in {OUTPUT_TYPES}, got {output_type!r}")
        count = positive("batch_size", batch_size)
        source = _one(generator)
        sampler = self._sampler()
        self.scheduler.set_timesteps(positive("num_inference_steps", num_inference_steps))
        options: Any = {"steps": self.scheduler.timesteps.tolist()} | self._bound()
        with self.progress_bar(total=num_inference_steps) as bar:

            def show(done: int, steps: int) -> None:
                # An engine may take the images in several batches, each through all steps.
                bar.total = steps
                bar.update(done - bar.n)

            progress = None if bar.disable else show
            x = sampler.sample(count, _seed(source), progress=progress, **options)
        images = _shown((x / 2 + 0.5).clamp(0, 1), output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _sampler(self) -> Sampler:
        """Of the network and the scheduler as they are now."""
        scheduler = counter_scheduler(self.scheduler)
        if scheduler is not self.scheduler:
            self.register_modules(scheduler=scheduler)
        unet, config = self.unet, scheduler.config
        place = self.device, unet.dtype
        made = self._made
        if not (made and made.unet is unet and made.config is config and made.place == place):
            sampler = Sampler(unet, _diffusion(config), **self._settings)
            self._made = made = _Made(sampler, unet, config, place)
        return made.sampler

    def _bound(self) -> dict[str, Any]:
        """The bound of x_0 that a diffusion has no setting for."""
        config = self.scheduler.config
        if not config.thresholding:
            return {}
        settings = config.dynamic_thresholding_ratio, config.sample_max_value
        return {"clip": Threshold(*settings)}


def _diffusion(config: Any) -> GaussianDiffusion:
    """All timesteps of a FastDDPMScheduler's config; ValueError for what is not offered."""
    values = {**config, "thresholding": False}
    if values["trained_betas"] is not None:
        values["trained_betas"] = [float(beta) for beta in values["trained_betas"]]
    noisy = "diffusers" if values["compatibility"] == "diffusers" else "none"
    values["fastddpm"] = {"last_step_noise": noisy}
    return read_scheduler(values, "the pipeline's scheduler")


def _one(generator: torch.Generator | list[torch.Generator] | None) -> torch.Generator | None:
    """The generator given, alone or in a list."""
    if isinstance(generator, list) and len(generator) == 1:
        generator = generator[0]
    if generator is None or isinstance(generator, torch.Generator):
        return generator
    many = isinstance(generator, list)
    given = f"a list of {len(generator)}" if many else type(generator).__name__
    raise ValueError(
        f"expected one torch.Generator, whose seed all images share (noise='counter' tells them "
        f"apart by their index), got {given}"
    )


def _seed(generator: torch.Generator | None) -> int:
    """The seed that a generator stands for; it is moved on."""
    own = generator or torch.default_generator
    fresh = torch.Generator(own.device).manual_seed(own.initial_seed()).get_state()
    untouched = generator is not None and torch.equal(own.get_state(), fresh)
    drawn = torch.randint(2**63 - 1, (), generator=own, device=own.device)
    return own.initial_seed() if untouched else int(drawn)


def _shown(images: Tensor, output_type: str) -> Any:
    """[B, C, H, W] in [0, 1] as a call has asked for them."""
    if output_type == "pt":
        return images
    arrays = images.permute(0, 2, 3, 1).cpu().numpy()
    return DDPMPipeline.numpy_to_pil(arrays) if output_type == "pil" else arrays
