"""Sampler: images from a model by the whole reverse chain (Ho et al. 2020, algorithm 2).

    x_T ~ N(0, I);   for i = T-1, ..., 0:  x <- step(x, i);   the image is the last x

The index i counts the steps still to come after this one; a chain of fewer steps, or of another
method, has other tables for the same step (methods.py).
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastddpm import engine as engines
from fastddpm.diffusion import GaussianDiffusion
from fastddpm.engine import CpuOptions
from fastddpm.sampler import arguments, editing, interpolate
from fastddpm.sampler.arguments import Array, Indices, Labels, integer, positive
from fastddpm.sampler.call import NetworkCall
from fastddpm.sampler.chain import Chain, Conditions
from fastddpm.sampler.explain import explain
from fastddpm.sampler.measured import Measured, measure
from fastddpm.sampler.model import Model, device_of, sample_shape, unwrapped
from fastddpm.sampler.network import Networks
from fastddpm.sampler.noise_source import CallerNoise, GivenNoise, NoiseSource
from fastddpm.sampler.recipe import OWN, Options, Recipe
from fastddpm.sampler.unet_network import unfit_for_programs

if TYPE_CHECKING:
    from typing_extensions import Unpack

Progress = Callable[[int, int], None]
# Of a chain, its noise and samples: where a part of them begins.
Start = Callable[[NoiseSource, slice], Tensor]

# Chains kept for later calls; each holds its tables and what it has prepared.
KEPT = 8


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


@dataclass(frozen=True)
class _Call:
    """What every call has: its chain and how each sample of it is told from the others."""

    chain: Chain
    seed: int
    chosen: Tensor
    noise: CallerNoise | None
    conditions: Conditions


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
        self._networks = Networks(model, self.device, dtype, self._engine)
        self._chains: OrderedDict[Recipe, Chain] = OrderedDict()
        # Made at once, as it is where a diffusion that cannot be run is found.
        self._chain = self._chain_of(OWN)

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
            options: steps, spacing, method, eta, variance, clip, guidance, null_label, on_x_0; see
                ``fastddpm.sampler.Options``.

        Returns:
            float32 [n, C, H, W] on the sampler's device: the last step's mean as it is. With clip=1
            that is the clipped estimate of x_0, in [-1, 1]; nothing is clamped beyond that.

        Raises:
            ValueError: arguments that do not fit together.
            FloatingPointError: NaN or Inf in the chain; names the timestep.
        """
        given = None if x_T is None else self._images("x_T", x_T)
        if given is not None and n is None and indices is None:
            n = len(given)
        recipe = Recipe.of(self.diffusion, options)
        call = self._call(recipe, options, _chosen(n, indices, noise), seed, noise, labels)
        begin = self._noise_alone(call, given)
        return self._decode(call, begin, call.chain.num_steps - 1, batch_size, progress)

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
        given = None if x_T is None else self._images("x_T", x_T)
        if given is not None and n is None and indices is None:
            n = len(given)
        recipe = Recipe.of(self.diffusion, options)
        call = self._call(recipe, options, _chosen(n, indices, noise), seed, noise, labels)
        source = self._source(call, call.chosen)
        x = self._noise_alone(call, given)(source, slice(None))
        return self._stream(call, x, source, every)

    def _stream(self, call: _Call, x: Tensor, source: NoiseSource, every: int) -> Iterator[Step]:
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

    def invert(
        self,
        images: Tensor | Array,
        *,
        labels: Labels | None = None,
        batch_size: int | None = None,
        progress: Progress | None = None,
        **options: Unpack[Options],
    ) -> Tensor:
        """x_T that DDIM without noise leads back to the images: its ODE run the other way.

        images: float [B, C, H, W] in [-1, 1]. Other arguments and errors as in ``sample``; x_0 is
        not bounded, unless ``clip`` says so.

        Returns float32 [B, C, H, W], for ``sample(x_T=..., method="ddim")`` with the same steps.
        """
        x = self._images("images", images)
        options["method"] = "ddim-inverse"
        recipe = Recipe.of(self.diffusion, options)
        call = self._call(recipe, options, torch.arange(len(x)), 0, None, labels)
        begin = self._noise_alone(call, x)
        return self._decode(call, begin, call.chain.num_steps - 1, batch_size, progress)

    def img2img(
        self,
        images: Tensor | Array,
        t: int,
        seed: int = 0,
        *,
        indices: Indices | None = None,
        noise: CallerNoise | None = None,
        labels: Labels | None = None,
        batch_size: int | None = None,
        progress: Progress | None = None,
        **options: Unpack[Options],
    ) -> Tensor:
        """New images from these: noised to step t, then drawn by the steps t, ..., 0 (SDEdit).

        images: float [B, C, H, W] in [-1, 1]. t: 0 to T-1 of the whole chain; with fewer steps the
        last one that is not beyond it. indices: of the images, 0, ..., B-1 by default. noise: asked
        for as in ``sample``, first for the images'. Other arguments and errors as in ``sample``.
        """
        x_0, t = self._images("images", images), integer("t", t)
        chosen = _chosen(None if indices is not None else len(x_0), indices, noise)
        recipe = Recipe.of(self.diffusion, options)
        call = self._call(recipe, options, chosen, seed, noise, labels)
        _expect_as_many("images", x_0, chosen)
        if recipe.method == "ddim-inverse":
            raise ValueError("img2img draws by the steps t, ..., 0, not by method 'ddim-inverse'")
        start = editing.start_of(call.chain, recipe.timesteps, t)

        def begin(source: NoiseSource, batch: slice) -> Tensor:
            given = (start, source, call.seed, chosen[batch])
            return editing.noised(call.chain, x_0[batch], *given)

        return self._decode(call, begin, start, batch_size, progress)

    def inpaint(
        self,
        images: Tensor | Array,
        known: Tensor | Array,
        seed: int = 0,
        *,
        jump_length: int = 10,
        resamplings: int = 10,
        indices: Indices | None = None,
        noise: CallerNoise | None = None,
        labels: Labels | None = None,
        batch_size: int | None = None,
        progress: Progress | None = None,
        **options: Unpack[Options],
    ) -> Tensor:
        """The images with what is not known of them drawn anew (RePaint; see repaint.py).

        images: float [B, C, H, W] in [-1, 1]. known: bool, or 0 and 1, of a shape that broadcasts
        to that; what is not known may hold anything finite. jump_length, resamplings: j and r of
        the paper, whose 250 ``steps`` they belong to; resamplings=1 never goes back. The network is
        called about resamplings times as often as the chain has steps. ``noise`` is called with as
        many steps. The method is "ancestral", with a fixed variance. Other arguments and errors as
        in ``sample``.
        """
        x_0 = self._images("images", images)
        chosen = _chosen(None if indices is not None else len(x_0), indices, noise)
        _expect_as_many("images", x_0, chosen)
        jumps = positive("jump_length", jump_length), positive("resamplings", resamplings)
        own = Recipe.of(self.diffusion, options)
        if own.method != "ancestral" or own.variance is not None:
            raise ValueError("inpaint walks the ancestral chain, with the diffusion's own variance")
        call = self._call(replace(own, jumps=jumps), options, chosen, seed, noise, labels)
        mask = arguments.mask("known", known, x_0)
        conditions = replace(call.conditions, images=x_0, mask=mask)
        call = replace(call, conditions=conditions)
        begin = self._noise_alone(call, None)
        return self._decode(call, begin, call.chain.num_steps - 1, batch_size, progress)

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
            conditions=Conditions(self._labels(labels, len(weights) * pairs)),
            after_step=_counted(progress, t + 1),
        )

    def measure(
        self,
        images: Tensor | Array,
        seed: int = 0,
        *,
        labels: Labels | None = None,
        progress: Progress | None = None,
    ) -> Measured:
        """What the model does on data, at every timestep: for the analytic variance and the best
        timesteps. images: float [B, C, H, W] in [-1, 1]; a thousand are plenty. See measured.py."""
        x_0 = self._images("images", images)
        rows = self._labels(labels, len(x_0))
        return measure(self._call_network(), self.diffusion, x_0, seed, rows, progress)

    def explain(self) -> str:
        """Which engine and kernels run, and why not the others, one line each."""
        return explain(self.model, self._engine, self.device, self.dtype, self._tf32)

    def _chain_of(self, recipe: Recipe) -> Chain:
        """The chain of a recipe, the last ones used being kept."""
        chain = self._chains.pop(recipe, None) or Chain(
            self.model,
            self.diffusion,
            self._engine,
            self.device,
            self.dtype,
            tf32=self._tf32,
            recipe=recipe,
            networks=self._networks,
        )
        self._chains[recipe] = chain
        while len(self._chains) > KEPT:
            self._chains.popitem(last=False)
        return chain

    def _call_network(self) -> NetworkCall:
        given = (self.model, self._engine, self.device, self.dtype)
        return NetworkCall(*given, tf32=self._tf32)

    def _call(
        self,
        recipe: Recipe,
        options: Options,
        chosen: Tensor,
        seed: int,
        noise: CallerNoise | None,
        labels: Labels | None,
    ) -> _Call:
        """A call of a recipe, checked as far as its arguments alone tell."""
        seed, rows = integer("seed", seed), self._labels(labels, len(chosen))
        conditions = Conditions(rows)
        if recipe.guided:
            conditions = Conditions(rows, *arguments.guidance(self.model, rows, **options))
        elif "null_label" in options:
            raise ValueError("null_label is for guidance=")
        return _Call(self._chain_of(recipe), seed, chosen, noise, conditions)

    def _noise_alone(self, call: _Call, given: Tensor | None) -> Start:
        """Where the chain begins: at what is given, or at x_T ~ N(0, I)."""
        if given is None:
            return lambda source, batch: source.initial(call.chain.num_steps)
        _expect_as_many("x_T", given, call.chosen)
        return lambda source, batch: given[batch]

    def _decode(
        self,
        call: _Call,
        begin: Start,
        start: int,
        batch_size: int | None,
        progress: Progress | None,
    ) -> Tensor:
        """The images at the end of the steps start, ..., 0, in batches."""
        chain, count = call.chain, len(call.chosen)
        size = self._split(call, batch_size)
        batches = [slice(i, i + size) for i in range(0, count, size)]
        after_step = _counted(progress, len(batches) * (start + 1))
        images = torch.empty((count, *self.shape), dtype=torch.float32, device=self.device)
        for batch in batches:
            source = self._source(call, call.chosen[batch])
            images[batch] = chain.decode(
                begin(source, batch),
                source,
                start,
                conditions=call.conditions.rows(batch),
                # A last batch with fewer images runs in the graph that the others ran in.
                rows=size if self._engine.captures and len(batches) > 1 else None,
                after_step=after_step,
            )
        return images

    def _images(self, name: str, images: Tensor | Array) -> Tensor:
        """A caller's images as float32 [B, C, H, W] on the device."""
        tensor = arguments.images(name, images)
        if tuple(tensor.shape[1:]) != self.shape:
            raise ValueError(
                f"{name} must be a batch of the sample's shape {list(self.shape)}, got "
                f"{list(tensor.shape)}"
            )
        return tensor.to(self.device, torch.float32)

    def _shape_of(self, images: Tensor) -> tuple[int, ...]:
        """The sampler's shape; where that is unknown, the images'."""
        if self._shape is None and images.ndim in (3, 4):
            return tuple(images.shape[-3:])
        return self.shape

    def _source(self, call: _Call, chosen: Tensor) -> NoiseSource:
        if call.noise is None:
            return call.chain.counter_noise(call.seed, chosen, self.shape)
        return GivenNoise(call.noise, (len(chosen), *self.shape), self.device)

    def _labels(self, labels: Labels | None, count: int) -> Tensor | None:
        if labels is None:
            return None
        return arguments.label_rows(labels, count, self.model, self.device)

    def _split(self, call: _Call, batch_size: int | None) -> int:
        """Images in a batch, at least 1."""
        count, noise = len(call.chosen), call.noise
        own = None if batch_size is None else positive("batch_size", batch_size)
        size = own or self.batch_size or max(count, 1)
        if noise is not None and size < count:
            raise ValueError(
                f"noise= draws for the whole batch: {count} images cannot be split into "
                f"batches of {size}"
            )
        if noise is not None:
            return size
        copies = call.chain.copies
        return max(self._engine.batch(min(size, count) * copies, self.shape) // copies, 1)


def _chosen(n: int | None, indices: Indices | None, noise: CallerNoise | None) -> Tensor:
    """The sample indices, int64 [n] on the host."""
    if indices is not None and n is None and noise is not None:
        raise ValueError("noise= replaces the counter's noise, which indices= choose from: give n")
    return arguments.sample_indices(n, indices)


def _expect_as_many(name: str, images: Tensor, chosen: Tensor) -> None:
    if len(images) != len(chosen):
        raise ValueError(f"{name} are {len(images)}, the samples asked for {len(chosen)}")


def _counted(progress: Progress | None, total: int) -> Callable[[], None] | None:
    """A function that reports one step more at each call; None where nobody listens."""
    if progress is None:
        return None
    done = itertools.count(1)
    return lambda: progress(next(done), total)
