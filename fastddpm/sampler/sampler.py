"""Sampler: images from a model by the whole reverse chain (Ho et al. 2020, algorithm 2).

    x_T ~ N(0, I);   for i = T-1, ..., 0:  x <- step(x, i);   the image is the last x

The index i counts the steps still to come after this one; a respaced diffusion has fewer of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastddpm import engine as engines
from fastddpm.diffusion import GaussianDiffusion
from fastddpm.engine import CpuOptions
from fastddpm.sampler import arguments, interpolate
from fastddpm.sampler.arguments import Array, Indices, Labels, integer, positive
from fastddpm.sampler.chain import Chain
from fastddpm.sampler.explain import explain
from fastddpm.sampler.model import Model, device_of, sample_shape, unwrapped
from fastddpm.sampler.noise_source import CallerNoise, GivenNoise, NoiseSource
from fastddpm.sampler.unet_network import unfit_for_programs

Progress = Callable[[int, int], None]


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


class Sampler:
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
    batch_size: the most images to run at once; None: all of them. Engine "cpu" runs 8192 pixels at
                once, as more are no faster and take more memory.
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
        if not callable(model):
            raise ValueError(f"model must be callable as model(x, t), got {type(model).__name__}")
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ValueError(f"dtype must be a floating-point torch.dtype, got {dtype!r}")
        if not isinstance(diffusion, GaussianDiffusion):
            raise ValueError(f"diffusion must be a GaussianDiffusion, got {diffusion!r}")
        self.model = model
        self.diffusion = diffusion
        self.device = device_of(model, device)
        self.dtype = dtype
        self.batch_size = None if batch_size is None else positive("batch_size", batch_size)
        self._shape = sample_shape(model) if shape is None else arguments.sample_shape(shape)
        self._tf32 = tf32
        self._engine = engines.select(
            engine,
            self.device,
            CpuOptions(threads, weights, memory),
            unfit=unfit_for_programs(unwrapped(model), dtype),
        )
        self._chain = Chain(model, diffusion, self._engine, self.device, dtype, tf32=tf32)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of a sample; ValueError if neither the caller nor the model's config told."""
        if self._shape is None:
            raise ValueError("the model has no config that tells the sample's shape: give shape=")
        return self._shape

    def sample(
        self,
        n: int | None = None,
        seed: int = 0,
        *,
        indices: Indices | None = None,
        noise: CallerNoise | None = None,
        labels: Labels | None = None,
        batch_size: int | None = None,
        progress: Progress | None = None,
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
                none there). The batch is not split.
            labels: one class for all images, or one for each; needs a conditional model. Floating
                where the model's class_embed_type is "timestep" or "identity".
            batch_size: overrides the sampler's for this call.
            progress: called after every step with (steps done, steps in all), summed over the
                      batches.

        Returns:
            float32 [n, C, H, W] on the sampler's device: the last step's mean as it is. With clip=1
            that is the clipped estimate of x_0, in [-1, 1]; nothing is clamped beyond that.

        Raises:
            ValueError: arguments that do not fit together.
            FloatingPointError: NaN or Inf in the chain; names the timestep.
        """
        chosen, seed = _chosen(n, indices, noise), integer("seed", seed)
        rows = self._labels(labels, len(chosen))
        size = self._split(len(chosen), batch_size, noise)
        chain = self._chain
        batches = [slice(i, i + size) for i in range(0, len(chosen), size)]
        after_step = _counted(progress, len(batches) * chain.num_steps)
        images = torch.empty((len(chosen), *self.shape), dtype=torch.float32, device=self.device)
        for batch in batches:
            source = self._source(seed, chosen[batch], noise)
            images[batch] = chain.decode(
                source.initial(chain.num_steps),
                source,
                chain.num_steps - 1,
                labels=None if rows is None else rows[batch],
                # A last batch with fewer images runs in the graph that the others ran in.
                rows=size if self._engine.captures and len(batches) > 1 else None,
                after_step=after_step,
            )
        return images

    def stream(
        self,
        n: int | None = None,
        seed: int = 0,
        every: int = 50,
        *,
        indices: Indices | None = None,
        noise: CallerNoise | None = None,
        labels: Labels | None = None,
    ) -> Iterator[Step]:
        """Progressive generation: states and estimates on the way to the images of ``sample``.

        Yields a ``Step`` whenever t, the steps still to go, is a multiple of ``every``; the last
        has t = 0 and x_t what ``sample`` returns. All images run as one batch. Other arguments and
        errors as in ``sample``; the arguments are checked at once, the chain runs as it is read.
        """
        every, seed = positive("every", every), integer("seed", seed)
        chosen = _chosen(n, indices, noise)
        rows = self._labels(labels, len(chosen))
        return self._stream(self._source(seed, chosen, noise), every, rows)

    def _stream(self, source: NoiseSource, every: int, labels: Tensor | None) -> Iterator[Step]:
        chain = self._chain
        moments = chain.run(
            source.initial(chain.num_steps),
            source,
            chain.num_steps - 1,
            labels=labels,
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

    def interpolate(
        self,
        a: Tensor | Array,
        b: Tensor | Array,
        t: int = 500,
        lambdas: Sequence[float] | Tensor | Array = (0.0, 0.25, 0.5, 0.75, 1.0),
        seed: int = 0,
        *,
        resample_noise: bool = False,
        noise: CallerNoise | None = None,
        labels: Labels | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Images between a and b: [L, C, H, W], or [L, B, C, H, W] for batches of pairs.

        Encodes both to step t, mixes with each of the L weights in ``lambdas`` and decodes, with
        the same noise for every weight. See ``fastddpm.sampler.interpolate.interpolate`` for every
        argument. a and b are floating point; where the sampler knows no shape they are taken for
        pictures, [C, H, W] or [B, C, H, W].
        """
        image_a, image_b = (arguments.images("a and b", end) for end in (a, b))
        t, weights = integer("t", t), arguments.weights(lambdas)
        shape = self._shape_of(image_a)
        pairs = len(image_a) if image_a.ndim > len(shape) else 1
        return interpolate.interpolate(
            self._chain,
            shape,
            image_a,
            image_b,
            t,
            weights,
            integer("seed", seed),
            resample_noise=resample_noise,
            noise=noise,
            labels=self._labels(labels, len(weights) * pairs),
            after_step=_counted(progress, t + 1),
        )

    def explain(self) -> str:
        """Which engine and kernels run, and why not the others, one line each."""
        return explain(self.model, self._engine, self.device, self.dtype, self._tf32)

    def _shape_of(self, images: Tensor) -> tuple[int, ...]:
        """The sampler's shape; where that is unknown, the images'."""
        if self._shape is None and images.ndim in (3, 4):
            return tuple(images.shape[-3:])
        return self.shape

    def _source(self, seed: int, chosen: Tensor, noise: CallerNoise | None) -> NoiseSource:
        if noise is None:
            return self._chain.counter_noise(seed, chosen, self.shape)
        return GivenNoise(noise, (len(chosen), *self.shape), self.device)

    def _labels(self, labels: Labels | None, count: int) -> Tensor | None:
        if labels is None:
            return None
        return arguments.label_rows(labels, count, self.model, self.device)

    def _split(self, count: int, batch_size: int | None, noise: CallerNoise | None) -> int:
        """Images in a batch, at least 1."""
        own = None if batch_size is None else positive("batch_size", batch_size)
        size = own or self.batch_size or max(count, 1)
        if noise is not None and size < count:
            raise ValueError(
                f"noise= draws for the whole batch: {count} images cannot be split into "
                f"batches of {size}"
            )
        return size if noise is not None else self._engine.batch(min(size, count), self.shape)


def _chosen(n: int | None, indices: Indices | None, noise: CallerNoise | None) -> Tensor:
    """The sample indices, int64 [n] on the host."""
    if indices is not None and n is None and noise is not None:
        raise ValueError("noise= replaces the counter's noise, which indices= choose from: give n")
    return arguments.sample_indices(n, indices)


def _counted(progress: Progress | None, total: int) -> Callable[[], None] | None:
    """A function that reports one step more at each call; None where nobody listens."""
    if progress is None:
        return None
    done = itertools.count(1)
    return lambda: progress(next(done), total)
