"""Sampler: images from a model by the whole reverse chain (Ho et al. 2020, algorithm 2).

    x_T ~ N(0, I);   for i = T-1, ..., 0:  x <- step(x, i);   the image is the last x

The index i counts the steps still to come after this one; a chain of fewer steps, or of another
method, has other tables for the same step (methods.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastddpm.diffusion import GaussianDiffusion
from fastddpm.engine import CpuOptions
from fastddpm.sampler import arguments
from fastddpm.sampler.arguments import Array, Indices, Labels, positive
from fastddpm.sampler.explain import explain
from fastddpm.sampler.image_editing import Editing
from fastddpm.sampler.latents import Latents
from fastddpm.sampler.measured import AT_ONCE, Measured, measure
from fastddpm.sampler.model import Model, sample_shape
from fastddpm.sampler.noise_source import CallerNoise, NoiseSource
from fastddpm.sampler.place import Place
from fastddpm.sampler.recipe import OWN, Options, Recipe
from fastddpm.sampler.runs import Call, Progress, Runs, Start, chosen_samples

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass(frozen=True)
class Step:
    """A moment of the chain, as ``Sampler.stream`` yields it.

    t:   steps still to go, so that x_t is the paper's: T - 1 after the first step, 0 for the
         finished image.
    x_t: float32 [B, C, H, W], the state.
    x_0: float32 [B, C, H, W], the model's estimate of the image, made in the step that led to x_t.
    """

    t: int
    x_t: Tensor
    x_0: Tensor


class Sampler(Latents, Editing):
    """Samples of ``model`` under ``diffusion``.

    model:      fastddpm.UNet or any callable (x, t) -> output. x is [B, C, H, W] in the network's
                dtype, t [B] the original timesteps; the output a tensor, or an object that holds it
                in ``.sample`` (diffusers).
    engine:     "auto" takes the fastest that runs here, "reference" the plain loop with reference
                ops; "compile", "cuda_graph", "cpu" that engine or a ValueError with the reason.
    device:     where to run; None: where the model is.
    dtype:      what the network computes in; None: its own. The chain's state is always float32.
    shape:      (C, H, W) of a sample; None: as the model's config tells. Where it does not, only
                ``interpolate`` runs, with the shape of its images.
    batch_size: the most images to run at once; None: all of them. Engine "cpu" runs at most 32768
                pixels at once (32 images of 32x32): more are hardly faster and take memory.
    tf32:       let a GPU round the factors of float32 products to TF32 (10 bits); with False a
                float32 network computes in float32 whatever torch's global settings say.
    threads, weights, memory: of engine "cpu", which "auto" takes on a CPU; see
                ``fastddpm.engine.CpuOptions``.

    A model on another device or in another dtype than asked for is copied, never changed; weights
    that change later are taken over at the next call. During a call it is in evaluation mode,
    without gradients and out of a caller's autocast; each module's own mode is restored. What an
    engine has compiled or captured for a batch size is kept for later calls. One thread and one
    CUDA stream may use a sampler at a time.

    Image i of a seed depends on (seed, i) alone: its noise is bit for bit the same in every batch,
    order and process. On engine "cpu" the image is, too, for any number of threads. What the
    network adds on others may differ in the last bits between batch *sizes*, because torch picks
    other algorithms for them; a model that treats each row by itself gives identical images for
    every split.

    Raises ValueError for an engine that cannot run here, or a device that is not there.
    """

    def __init__(
        self,
        model: Model,
        diffusion: GaussianDiffusion,
        engine: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        shape: Sequence[int] | None = None,
        batch_size: int | None = None,
        tf32: bool = False,
        threads: int | None = None,
        weights: str = "float32",
        memory: str = "small",
    ) -> None:
        cpu = CpuOptions(threads, weights, memory)
        place = Place.of(model, diffusion, engine, device, dtype, cpu, tf32)
        known = sample_shape(model) if shape is None else arguments.sample_shape(shape)
        most = None if batch_size is None else positive("batch_size", batch_size)
        self._settings: dict[str, Any] = dict(
            engine=engine,
            device=device,
            dtype=dtype,
            shape=known,
            batch_size=most,
            tf32=tf32,
            threads=threads,
            weights=weights,
            memory=memory,
        )
        self._runs = Runs(model, diffusion, place, known, most)
        # Made at once: here a diffusion that cannot be run is found.
        self._chain = self._runs.chain_of(OWN)

    def __reduce__(self) -> tuple[Callable[..., Sampler], tuple[Model, GaussianDiffusion]]:
        """A copy, or a sampler from a pickle, prepares for itself what it runs."""
        return partial(type(self), **self._settings), (self.model, self.diffusion)

    @property
    def model(self) -> Model:
        """As it was given."""
        return self._runs.model

    @property
    def diffusion(self) -> GaussianDiffusion:
        """As it was given."""
        return self._runs.diffusion

    @property
    def device(self) -> torch.device:
        """Where the chains run."""
        return self._runs.place.device

    @property
    def dtype(self) -> torch.dtype | None:
        """What the network was asked to compute in; None: its own."""
        return self._runs.place.dtype

    @property
    def batch_size(self) -> int | None:
        """The most images that run at once, where the caller said so."""
        return self._runs.batch_size

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of a sample; ValueError if neither the caller nor the model's config told."""
        return self._runs.shape

    def sample(
        self,
        n: int | None = None,
        seed: int = 0,
        *,
        indices: Indices | None = None,
        noise: CallerNoise | None = None,
        labels: Labels | None = None,
        x_T: Tensor | Array | None = None,
        batch_size: int | None = None,
        progress: Progress | None = None,
        **options: Unpack[Options],
    ) -> Tensor:
        """Draw images.

        Args:
            n: how many; their indices are 0, ..., n-1. Give n or ``indices``.
            seed: 0 to 2^64 - 1.
            indices: which images of the seed to make: integers >= 0 in any order, in a list, a
                range, a one-dimensional tensor or array.
            noise: instead of the seed, ``fn(step, shape) -> noise [n, C, H, W]``, called with
                step = T for x_T and then once for each step T-1, ..., 0, the last included though
                it adds no noise (so that draws align with OpenAI's and Ho's loops; diffusers draws
                none there). A method without noise asks for x_T alone. The batch is not split.
            labels: one class for all images, or one for each; needs a conditional model. Floating
                where the model's class_embed_type is "timestep" or "identity".
            x_T: where the chain begins, float [n, C, H, W], instead of noise.
            batch_size: overrides the sampler's for this call.
            progress: called after every step with (steps done, steps in all), summed over the
                      batches.
            options: steps, spacing, method, eta, corrections, step_size, variance, clip, guidance,
                null_label, on_x_0; see ``fastddpm.sampler.Options``.

        Returns:
            float32 [n, C, H, W] on the sampler's device: the last step's mean as it is. With clip=1
            that is the clipped estimate of x_0, in [-1, 1]; nothing is clamped beyond that.

        Raises:
            ValueError: arguments that do not fit together.
            FloatingPointError: NaN or Inf in the chain; names the timestep.
        """
        call, begin = self._begun(n, seed, indices, noise, labels, x_T, options)
        return self._runs.decode(call, begin, call.chain.num_steps - 1, batch_size, progress)

    def stream(
        self,
        n: int | None = None,
        seed: int = 0,
        every: int = 50,
        *,
        indices: Indices | None = None,
        noise: CallerNoise | None = None,
        labels: Labels | None = None,
        x_T: Tensor | Array | None = None,
        **options: Unpack[Options],
    ) -> Iterator[Step]:
        """Progressive generation: states and estimates on the way to the images of ``sample``.

        Yields a ``Step`` whenever t, the steps still to go, is a multiple of ``every``; the last
        has t = 0 and x_t what ``sample`` returns. All images run as one batch. Other arguments and
        errors as in ``sample``; the arguments are checked at once, the chain runs as it is read.
        """
        every = positive("every", every)
        call, begin = self._begun(n, seed, indices, noise, labels, x_T, options)
        source = self._runs.source(call, call.chosen)
        x = begin(source, slice(None))
        return self._stream(call, x, source, every)

    def _begun(
        self,
        n: int | None,
        seed: int,
        indices: Indices | None,
        noise: CallerNoise | None,
        labels: Labels | None,
        x_T: Tensor | Array | None,
        options: Options,
    ) -> tuple[Call, Start]:
        """The call that arguments of ``sample`` and ``stream`` ask for, and where it begins."""
        given = None if x_T is None else self._runs.images("x_T", x_T)
        if given is not None and n is None and indices is None:
            n = len(given)
        recipe = Recipe.of(self._runs.diffusion, options)
        chosen = chosen_samples(n, indices, noise)
        call = self._runs.call(recipe, options, chosen, seed, noise, labels)
        return call, self._runs.begin_at(call, given)

    def _stream(self, call: Call, x: Tensor, source: NoiseSource, every: int) -> Iterator[Step]:
        chain = call.chain
        moments = chain.run(
            x,
            source,
            chain.num_steps - 1,
            conditions=call.conditions,
            estimates=True,
            shown_every=every,
        )
        while True:
            # Entered anew for each moment: between them the model's mode is the caller's.
            with chain.running():
                moment = next(moments, None)
            if moment is None:
                return
            if moment.i % every == 0 and moment.x_0 is not None:
                yield Step(moment.i, moment.x_t.clone(), moment.x_0.clone())

    def measure(
        self,
        images: Tensor | Array,
        seed: int = 0,
        *,
        labels: Labels | None = None,
        progress: Progress | None = None,
    ) -> Measured:
        """What the model does on data, at every timestep: for the analytic variance and the best
        timesteps. images: float [B, C, H, W] in [-1, 1], or within the diffusion's ``clip``; a
        thousand are plenty. The sampler's
        ``batch_size`` of them run at once, 64 by default. See measured.py."""
        x_0 = self._runs.images("images", images)
        arguments.within("images", x_0, self.diffusion.clip)
        rows = self._runs.labels(labels, len(x_0))
        given = (self.diffusion, x_0, seed, rows, progress, self.batch_size or AT_ONCE)
        return measure(self._runs.network(), *given)

    def explain(self) -> str:
        """Which engine and kernels run, and why not the others, one line each."""
        place = self._runs.place
        return explain(self.model, place.engine, place.device, place.dtype, place.tf32)
