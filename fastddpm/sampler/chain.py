"""The reverse chain: the steps start, ..., 0, run by an engine and watched for NaN."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fastddpm.diffusion import GaussianDiffusion
from fastddpm.engine import Plan, Selection
from fastddpm.sampler.ancestral import AncestralStep, StepTables
from fastddpm.sampler.finite import FiniteWatch
from fastddpm.sampler.network import Network, evaluating
from fastddpm.sampler.noise_source import CounterNoise, NoiseSource

# How often the host looks whether the chain is still finite; each look waits for the device.
CHECK_EVERY = 50


@dataclass(frozen=True)
class Chain:
    """All that one call of the sampler shares between its batches.

    shape: (C, H, W) of a sample.
    """

    network: Network
    diffusion: GaussianDiffusion
    tables: StepTables
    engine: Selection
    shape: tuple[int, ...]
    device: torch.device

    @property
    def num_steps(self) -> int:
        return self.diffusion.num_steps

    def counter_noise(self, seed: int, indices: Tensor) -> CounterNoise:
        """The counter's noise for the samples ``indices``, int64 [B]."""
        timesteps, backend = self.tables.timesteps, self.engine.backend
        return CounterNoise(seed, indices.to(self.device), self.shape, timesteps, backend)

    def decode(
        self,
        x: Tensor,
        noise: NoiseSource,
        start: int,
        *,
        labels: Tensor | None = None,
        after_step: Callable[[], None] = lambda: None,
    ) -> Tensor:
        """The image at the end of ``run``; ``after_step`` is called after each step."""
        image = x
        with evaluating(self.network.model):
            for _, state in self.run(x, noise, start, labels=labels):
                image = state
                after_step()
        return image

    def run(
        self,
        x: Tensor,
        noise: NoiseSource,
        start: int,
        *,
        labels: Tensor | None = None,
        x_0: Tensor | None = None,
        shown_every: int = CHECK_EVERY,
    ) -> Iterator[tuple[int, Tensor]]:
        """Take the steps start, ..., 0 from the state x.

        x: float32 [B, C, H, W]; labels and x_0 as in ``AncestralStep``. Yields (index of the step
        just taken, state); the state is valid until the next step. Raises FloatingPointError for
        NaN or Inf, naming the timestep; at the latest CHECK_EVERY steps on, and before it yields an
        index that is a multiple of ``shown_every``.
        """
        watch = FiniteWatch(self.device)
        step = AncestralStep(
            self.network,
            self.diffusion,
            self.tables,
            noise,
            watch,
            backend=self.engine.backend,
            labels=labels,
            x_0=x_0,
        )
        plan = Plan(tuple(x.shape), start, self.device)
        runner = self.engine.prepare(step, plan)
        noise.refresh(start)
        for i, state in runner.iterate(x):
            if i % CHECK_EVERY == 0 or i % shown_every == 0:
                watch.check(self.diffusion.schedule.timesteps)
            yield i, state
            if i > 0:
                noise.refresh(i - 1)
