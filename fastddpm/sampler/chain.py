"""A chain of one recipe: the steps start, ..., 0, run by an engine and watched for NaN."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fastddpm import ops
from fastddpm.diffusion import GaussianDiffusion
from fastddpm.engine import Plan, Runner, RunnerCache
from fastddpm.sampler.conditions import NO_CONDITIONS, Conditions
from fastddpm.sampler.edited_estimate import EditedEstimate
from fastddpm.sampler.guidance import Guidance
from fastddpm.sampler.model import Model, evaluated, isolated
from fastddpm.sampler.network import Network, Networks
from fastddpm.sampler.noise_source import CounterNoise, NoiseSource
from fastddpm.sampler.place import Place
from fastddpm.sampler.recipe import OWN, Recipe
from fastddpm.sampler.repaint import Known
from fastddpm.sampler.reverse_step import ReverseStep, StepTables

# How often the host looks whether the chain is still finite; each look waits for the device.
CHECK_EVERY = 50
# Prepared chains kept for later calls; each holds its buffers and, on a GPU, a graph.
KEPT = 8


class Moment(NamedTuple):
    """The chain after one step; the tensors are valid until the next.

    i:   index of the step just taken.
    x_t: float32 [B, C, H, W], the state.
    x_0: the estimate of the image made in that step, or None if it was not asked for.
    """

    i: int
    x_t: Tensor
    x_0: Tensor | None

    def first(self, rows: int) -> Moment:
        """Of the first ``rows`` samples alone."""
        x_0 = None if self.x_0 is None else self.x_0[:rows]
        return Moment(self.i, self.x_t[:rows], x_0)


@dataclass(frozen=True)
class Kind:
    """What a prepared chain is made for; calls of one kind share it."""

    shape: tuple[int, ...]  # [B, C, H, W]
    noise: type | None
    labels: tuple[tuple[int, ...], torch.dtype] | None
    estimates: bool


class Prepared(NamedTuple):
    """A step with its static tensors, and the runner that an engine made of it."""

    step: ReverseStep
    runner: Runner
    guidance: Guidance | None
    known: Known | None


class Chain:
    """The reverse chain of one model under one diffusion, prepared once for each kind of call.

    diffusion: of all timesteps that the recipe chooses from.
    networks:  the model's; None: this chain's own.
    """

    def __init__(
        self,
        model: Model,
        diffusion: GaussianDiffusion,
        place: Place,
        recipe: Recipe = OWN,
        networks: Networks | None = None,
    ) -> None:
        self.diffusion = recipe.diffusion(diffusion)
        self.place = place
        self._recipe = recipe
        self.method, self._known_rows = recipe.steps(self.diffusion)
        self._tables = StepTables.of_method(self.method, place.device)
        self._networks = networks or Networks(model, place)
        self._turn = threading.Lock()
        self._network: Network | None = None
        self._kept: RunnerCache[Prepared] = RunnerCache(KEPT)

    @property
    def num_steps(self) -> int:
        """Of the chain, as many as it calls the network."""
        return self.method.num_steps

    @property
    def copies(self) -> int:
        """Rows of each sample."""
        return 2 if self._recipe.guided else 1

    def counter_noise(self, seed: int, indices: Tensor, shape: tuple[int, ...]) -> CounterNoise:
        """The counter's noise for the samples ``indices``, int64 [B], of shape (C, H, W)."""
        return CounterNoise(seed, indices.to(self.place.device), shape, self.place.engine.backend)

    def decode(
        self,
        x: Tensor,
        noise: NoiseSource,
        start: int,
        *,
        stop: int = 0,
        conditions: Conditions = NO_CONDITIONS,
        rows: int | None = None,
        after_step: Callable[[], None] | None = None,
    ) -> Tensor:
        """The state at the end of ``run``; ``after_step``, if there is one, is called after each
        step."""
        image = x
        each = after_step is not None
        moments = self.run(
            x, noise, start, stop=stop, conditions=conditions, rows=rows, each_step=each
        )
        with self.running():
            for moment in moments:
                image = moment.x_t
                if after_step is not None:
                    after_step()
        return image.clone()

    def run(
        self,
        x: Tensor,
        noise: NoiseSource,
        start: int,
        *,
        stop: int = 0,
        conditions: Conditions = NO_CONDITIONS,
        rows: int | None = None,
        estimates: bool = False,
        shown_every: int = CHECK_EVERY,
        each_step: bool = False,
    ) -> Iterator[Moment]:
        """Take the steps start, ..., ``stop`` from the state x, with the weights of this moment.

        To be read inside ``running``.

        x:      float32 [B, C, H, W].
        rows:   run with this many rows >= B, as another batch was: the rows beyond B are made up
                and dropped. Exact, because no row's noise depends on another.

        Yields the Moment after each step, or unless ``each_step`` after some of them: at least
        those whose index is a multiple of ``shown_every``, so that an engine may take several at
        once. Raises FloatingPointError for NaN or Inf, naming the timestep; at the latest
        CHECK_EVERY steps on, and before it yields an index that is a multiple of ``shown_every``.
        """
        size = rows or len(x)
        labels = self._labels(conditions, size)
        states = torch.cat([_with_rows(x, size)] * self.copies)
        kind = Kind(
            tuple(states.shape),
            type(noise) if self.method.stochastic else None,
            None if labels is None else (tuple(labels.shape[1:]), labels.dtype),
            estimates,
        )
        make = partial(self._prepare, self._refreshed(), kind, noise, labels)
        checked = partial(_is_checked, shown_every, stop)
        per_step = noise.per_step and self.method.stochastic
        stops = _always if each_step or per_step else checked
        given, taken = (noise, labels, conditions), range(start, stop - 1, -1)
        moments = self._moments(kind, make, states, given, taken, checked, stops)
        return (moment.first(len(x)) for moment in moments)

    def _moments(
        self,
        kind: Kind,
        make: Callable[[], Prepared],
        x: Tensor,
        given: tuple[NoiseSource, Tensor | None, Conditions],
        taken: range,
        checked: Callable[[int], bool],
        stops: Callable[[int], bool],
    ) -> Iterator[Moment]:
        noise, labels, conditions = given
        # Borrowed: a stream that is read slowly may meet another call of its kind meanwhile.
        with self._kept.borrow(kind, make) as prepared:
            step, runner = prepared.step, prepared.runner
            step.load(noise, labels, taken.start, self.copies)
            self._load(prepared, conditions, kind.shape[0] // self.copies)
            step.refresh(noise, taken.start)
            runner.reread()
            for i, state in runner.iterate(x, taken.start, len(taken), stops):
                if checked(i):
                    step.check_finite(self.method.timesteps)
                yield Moment(i, state, step.x_0)
                if i - 1 in taken:
                    step.refresh(noise, i - 1)

    def _load(self, prepared: Prepared, conditions: Conditions, rows: int) -> None:
        """Write a call's conditions where the step reads them."""
        if prepared.guidance is not None:
            prepared.guidance.scale.fill_(conditions.guidance)
        if prepared.known is not None:
            assert conditions.images is not None and conditions.mask is not None
            images, mask = (
                torch.cat([_with_rows(part, rows)] * self.copies)
                for part in (conditions.images, conditions.mask)
            )
            prepared.known.load(images, mask)

    def _labels(self, conditions: Conditions, rows: int) -> Tensor | None:
        """Of all rows that run."""
        if conditions.labels is None:
            return None
        labels = _with_rows(conditions.labels, rows)
        if not self._recipe.guided:
            return labels
        return torch.cat([labels, torch.full_like(labels, conditions.null_label)])

    @contextmanager
    def running(self) -> Iterator[None]:
        """What holds while the network runs: evaluation mode, no gradients, and the precision asked
        for; the caller's own settings are restored after."""
        plain = self.place.engine.backend == "reference"
        network = self._network or self._refreshed()
        with (
            evaluated(network.modules),
            isolated(self.place.device, tf32=self.place.tf32),
            ops.using("reference") if plain else nullcontext(),
        ):
            yield

    def _refreshed(self) -> Network:
        """The network with the weights of this moment. They are read anew even where nothing tells
        that they changed: against a chain it costs nothing."""
        with self._turn, isolated(self.place.device, tf32=self.place.tf32):
            if self._network is None or self._network.refresh(reread=True):
                self._kept.clear()
                self._network = self._networks.of(self._tables.network_t)
        return self._network

    def _prepare(
        self, network: Network, kind: Kind, noise: NoiseSource, labels: Tensor | None
    ) -> Prepared:
        def buffer() -> Tensor:
            return torch.zeros(kind.shape, dtype=torch.float32, device=self.place.device)

        method, shape, rows = self.method, kind.shape, self._tables.rows
        guidance = known = edited = None
        if self._recipe.guided:
            learns = self.diffusion.learns_variance
            guidance = Guidance(shape, self.place.device, learns_variance=learns)
        if self._known_rows is not None:
            known_rows = self._known_rows.to(self.place.device, torch.float32)
            known = Known(known_rows, shape, self.place.engine.backend)
        if self._recipe.edits or method.in_halves:
            edited = EditedEstimate(self._recipe.edits, rows, shape, stochastic=method.stochastic)
        drawn = noise.allocate(shape[0], self._tables.timesteps) if method.stochastic else None
        step = ReverseStep(
            network,
            method,
            self._tables,
            shape,
            drawn,
            backend=self.place.engine.backend,
            labels=labels,
            x_0=buffer() if kind.estimates or drawn is None else None,
            first=None if method.first is None else method.first.to(rows),
            guidance=guidance,
            edited=edited,
            known=known,
        )
        plan = Plan(shape, self.num_steps, self.place.device, fused=network.fused)
        runner = self.place.engine.prepare(step, plan)
        network.settle()
        return Prepared(step, runner, guidance, known)


def _is_checked(shown_every: int, stop: int, i: int) -> bool:
    return i % CHECK_EVERY == 0 or i % shown_every == 0 or i == stop


def _always(i: int) -> bool:
    return True


def _with_rows(x: Tensor, rows: int) -> Tensor:
    """x with copies of its first row after its own, up to ``rows`` rows."""
    if len(x) == rows:
        return x
    return torch.cat([x, x[:1].expand(rows - len(x), *x.shape[1:])])
