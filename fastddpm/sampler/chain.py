"""The reverse chain: the steps start, ..., 0, run by an engine and watched for NaN."""

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
from fastddpm.engine import Plan, Runner, RunnerCache, Selection
from fastddpm.sampler.ancestral import AncestralStep, StepTables
from fastddpm.sampler.model import Model, evaluated, isolated
from fastddpm.sampler.network import Network, network_of
from fastddpm.sampler.noise_source import CounterNoise, NoiseSource

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
    noise: type
    labels: tuple[tuple[int, ...], torch.dtype] | None
    estimates: bool


class Prepared(NamedTuple):
    """A step with its static tensors, and the runner that an engine made of it."""

    step: AncestralStep
    runner: Runner


class Chain:
    """The reverse chain of one model under one diffusion, prepared once for each kind of call.

    tf32: whether float32 products may be rounded to TF32 on a GPU.
    """

    def __init__(
        self,
        model: Model,
        diffusion: GaussianDiffusion,
        engine: Selection,
        device: torch.device,
        dtype: torch.dtype | None,
        *,
        tf32: bool = False,
    ) -> None:
        self.diffusion = diffusion
        self.engine = engine
        self.device = device
        self._tf32 = tf32
        self._tables = StepTables.of(diffusion, device)
        self._make_network = partial(
            network_of, model, device, dtype, self._tables.network_t, engine
        )
        self._turn = threading.Lock()
        self._network: Network | None = None
        self._kept: RunnerCache[Prepared] = RunnerCache(KEPT)

    @property
    def num_steps(self) -> int:
        return self.diffusion.num_steps

    def counter_noise(self, seed: int, indices: Tensor, shape: tuple[int, ...]) -> CounterNoise:
        """The counter's noise for the samples ``indices``, int64 [B], of shape (C, H, W)."""
        return CounterNoise(seed, indices.to(self.device), shape, self.engine.backend)

    def decode(
        self,
        x: Tensor,
        noise: NoiseSource,
        start: int,
        *,
        labels: Tensor | None = None,
        rows: int | None = None,
        after_step: Callable[[], None] | None = None,
    ) -> Tensor:
        """The image at the end of ``run``; ``after_step``, if there is one, is called after each
        step."""
        image = x
        each = after_step is not None
        moments = self.run(x, noise, start, labels=labels, rows=rows, each_step=each)
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
        labels: Tensor | None = None,
        rows: int | None = None,
        estimates: bool = False,
        shown_every: int = CHECK_EVERY,
        each_step: bool = False,
    ) -> Iterator[Moment]:
        """Take the steps start, ..., 0 from the state x, with the weights of this moment.

        To be read inside ``running``.

        x:      float32 [B, C, H, W].
        labels: [B, ...] on the device, or None.
        rows:   run with this many rows >= B, as another batch was: the rows beyond B are made up
                and dropped. Exact, because no row's noise depends on another.

        Yields the Moment after each step, or unless ``each_step`` after some of them: at least
        those whose index is a multiple of ``shown_every``, so that an engine may take several at
        once. Raises FloatingPointError for NaN or Inf, naming the timestep; at the latest
        CHECK_EVERY steps on, and before it yields an index that is a multiple of ``shown_every``.
        """
        states = _with_rows(x, rows or len(x))
        kind = Kind(
            tuple(states.shape),
            type(noise),
            None if labels is None else (tuple(labels.shape[1:]), labels.dtype),
            estimates,
        )
        make = partial(self._prepare, self._refreshed(), kind, noise, labels)
        checked = partial(_is_checked, shown_every)
        stops = _always if each_step or noise.per_step else checked
        moments = self._moments(kind, make, states, noise, start, labels, checked, stops)
        return (moment.first(len(x)) for moment in moments)

    def _moments(
        self,
        kind: Kind,
        make: Callable[[], Prepared],
        x: Tensor,
        noise: NoiseSource,
        start: int,
        labels: Tensor | None,
        checked: Callable[[int], bool],
        stops: Callable[[int], bool],
    ) -> Iterator[Moment]:
        # Borrowed: a stream that is read slowly may meet another call of its kind meanwhile.
        with self._kept.borrow(kind, make) as (step, runner):
            step.load(noise, labels)
            step.refresh(noise, start)
            runner.reread()
            for i, state in runner.iterate(x, start, stops=stops):
                if checked(i):
                    step.check_finite()
                yield Moment(i, state, step.x_0)
                if i > 0:
                    step.refresh(noise, i - 1)

    @contextmanager
    def running(self) -> Iterator[None]:
        """What holds while the network runs: evaluation mode, no gradients, and the precision asked
        for; the caller's own settings are restored after."""
        plain = self.engine.backend == "reference"
        network = self._network or self._refreshed()
        with (
            evaluated(network.modules),
            isolated(self.device, tf32=self._tf32),
            ops.using("reference") if plain else nullcontext(),
        ):
            yield

    def _refreshed(self) -> Network:
        """The network with the weights of this moment. They are read anew even where nothing tells
        that they changed: against a chain it costs nothing."""
        with self._turn, isolated(self.device, tf32=self._tf32):
            if self._network is None or self._network.refresh(reread=True):
                self._kept.clear()
                self._network = self._make_network()
        return self._network

    def _prepare(
        self, network: Network, kind: Kind, noise: NoiseSource, labels: Tensor | None
    ) -> Prepared:
        def buffer() -> Tensor:
            return torch.zeros(kind.shape, dtype=torch.float32, device=self.device)

        step = AncestralStep(
            network,
            self.diffusion,
            self._tables,
            kind.shape,
            noise.allocate(kind.shape[0], self._tables.timesteps),
            backend=self.engine.backend,
            labels=None if labels is None else _with_rows(labels, kind.shape[0]),
            x_0=buffer() if kind.estimates else None,
        )
        plan = Plan(kind.shape, self.num_steps, self.device, fused=network.fused)
        return Prepared(step, self.engine.prepare(step, plan))


def _is_checked(shown_every: int, i: int) -> bool:
    return i % CHECK_EVERY == 0 or i % shown_every == 0


def _always(i: int) -> bool:
    return True


def _with_rows(x: Tensor, rows: int) -> Tensor:
    """x with copies of its first row after its own, up to ``rows`` rows."""
    if len(x) == rows:
        return x
    return torch.cat([x, x[:1].expand(rows - len(x), *x.shape[1:])])
