"""The chains of one model, kept by their recipes, and how a call's samples go through one."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastddpm.diffusion import GaussianDiffusion
from fastddpm.sampler import arguments
from fastddpm.sampler.arguments import Array, Indices, Labels, integer, positive
from fastddpm.sampler.call import NetworkCall
from fastddpm.sampler.chain import Chain
from fastddpm.sampler.conditions import Conditions
from fastddpm.sampler.model import Model
from fastddpm.sampler.network import Networks
from fastddpm.sampler.noise_source import CallerNoise, GivenNoise, NoiseSource
from fastddpm.sampler.place import Place
from fastddpm.sampler.recipe import OWN, Options, Recipe

Progress = Callable[[int, int], None]
# Where a part of a call's samples begins, float32 [b, C, H, W].
Start = Callable[[NoiseSource, slice], Tensor]

# Chains kept for later calls; each holds its tables and what it has prepared.
KEPT = 8


@dataclass(frozen=True)
class Call:
    """What every call has: its chain, and what tells its samples from others.

    chosen: int64 [n] on the host, the sample indices. noise: a caller's; None: the counter's.
    """

    chain: Chain
    seed: int
    chosen: Tensor
    noise: CallerNoise | None
    conditions: Conditions


class Runs:
    """Arguments as ``Sampler``'s; shape: None if nobody told."""

    def __init__(
        self,
        model: Model,
        diffusion: GaussianDiffusion,
        place: Place,
        shape: tuple[int, ...] | None,
        batch_size: int | None,
    ) -> None:
        self.model = model
        self.diffusion = diffusion
        self.place = place
        self.batch_size = batch_size
        self._shape = shape
        self._networks = Networks(model, place)
        self.chains: OrderedDict[Recipe, Chain] = OrderedDict()

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of a sample; ValueError if neither the caller nor the model's config told."""
        if self._shape is None:
            raise ValueError("the model has no config that tells the sample's shape: give shape=")
        return self._shape

    def chain_of(self, recipe: Recipe) -> Chain:
        """The chain of a recipe, the last ones used being kept."""
        chain = self.chains.pop(recipe, None) or Chain(
            self.model, self.diffusion, self.place, recipe, self._networks
        )
        self.chains[recipe] = chain
        while len(self.chains) > KEPT:
            # The diffusion's own stays.
            del self.chains[next(kept for kept in self.chains if kept != OWN)]
        return chain

    def network(self) -> NetworkCall:
        return NetworkCall(self.model, self.place)

    def call(
        self,
        recipe: Recipe,
        options: Options,
        chosen: Tensor,
        seed: int,
        noise: CallerNoise | None,
        labels: Labels | None,
    ) -> Call:
        """A call of a recipe, checked as far as its arguments alone tell."""
        seed, rows = integer("seed", seed), self.labels(labels, len(chosen))
        conditions = Conditions(rows)
        if recipe.guided:
            conditions = Conditions(rows, *arguments.guidance(self.model, rows, **options))
        elif "null_label" in options:
            raise ValueError("null_label is for guidance=")
        return Call(self.chain_of(recipe), seed, chosen, noise, conditions)

    def begin_at(self, call: Call, given: Tensor | None) -> Start:
        """Where the chain begins: at what is given, or at x_T ~ N(0, I)."""
        if given is None:
            return lambda source, batch: source.initial(call.chain.num_steps)
        expect_as_many("x_T", given, call.chosen)
        return lambda source, batch: given[batch]

    def decode(
        self,
        call: Call,
        begin: Start,
        start: int,
        batch_size: int | None,
        progress: Progress | None,
    ) -> Tensor:
        """The images at the end of the steps start, ..., 0, in batches."""
        chain, count = call.chain, len(call.chosen)
        size = self._split(call, batch_size)
        batches = [slice(i, i + size) for i in range(0, count, size)]
        after_step = counted(progress, len(batches) * (start + 1))
        images = torch.empty((count, *self.shape), dtype=torch.float32, device=self.place.device)
        for batch in batches:
            source = self.source(call, call.chosen[batch])
            images[batch] = chain.decode(
                begin(source, batch),
                source,
                start,
                conditions=call.conditions.rows(batch),
                # A last batch with fewer images runs in the graph that the others ran in.
                rows=size if self.place.engine.captures and len(batches) > 1 else None,
                after_step=after_step,
            )
        return images

    def images(self, name: str, images: Tensor | Array) -> Tensor:
        """A caller's images as float32 [B, C, H, W] on the device."""
        tensor = arguments.images(name, images)
        if tuple(tensor.shape[1:]) != self.shape:
            raise ValueError(
                f"{name} must be a batch of the sample's shape {list(self.shape)}, got "
                f"{list(tensor.shape)}"
            )
        return tensor.to(self.place.device, torch.float32)

    def shape_of(self, images: Tensor) -> tuple[int, ...]:
        """The sampler's shape; where that is unknown, the images'."""
        if self._shape is None and images.ndim in (3, 4):
            return tuple(images.shape[-3:])
        return self.shape

    def source(self, call: Call, chosen: Tensor) -> NoiseSource:
        if call.noise is None:
            return call.chain.counter_noise(call.seed, chosen, self.shape)
        return GivenNoise(call.noise, (len(chosen), *self.shape), self.place.device)

    def labels(self, labels: Labels | None, count: int) -> Tensor | None:
        if labels is None:
            return None
        return arguments.label_rows(labels, count, self.model, self.place.device)

    def _split(self, call: Call, batch_size: int | None) -> int:
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
        return max(self.place.engine.batch(min(size, count) * copies, self.shape) // copies, 1)


def chosen_samples(n: int | None, indices: Indices | None, noise: CallerNoise | None) -> Tensor:
    """The sample indices, int64 [n] on the host."""
    if indices is not None and n is None and noise is not None:
        raise ValueError("noise= replaces the counter's noise, which indices= choose from: give n")
    return arguments.sample_indices(n, indices)


def expect_as_many(name: str, images: Tensor, chosen: Tensor) -> None:
    if len(images) != len(chosen):
        raise ValueError(f"{name} are {len(images)}, the samples asked for {len(chosen)}")


def counted(progress: Progress | None, total: int) -> Callable[[], None] | None:
    """A function that reports one step more at each call; None where nobody listens."""
    if progress is None:
        return None
    done = itertools.count(1)
    return lambda: progress(next(done), total)
