"""Where a chain's noise comes from: the counter (seed, sample index), or the caller.

A prepared step reads its noise from tensors that stay where they are from one call to the next
(``allocate``), so that a captured graph goes on seeing them; a source writes its own into them
(``load``, and ``refresh`` before each step).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fastddpm import ops
from fastddpm.noise import Purpose

# fn(step, shape) -> noise of the whole batch, a tensor or a numpy array
CallerNoise = Callable[[int, tuple[int, ...]], Any]


class NoiseSource(Protocol):
    """Standard normal noise for one batch.

    per_step: whether ``refresh`` does something.
    """

    per_step: bool

    def initial(self, num_steps: int) -> Tensor:
        """x_T, float32 [B, C, H, W]."""
        ...

    def allocate(self, batch: int, timesteps: Tensor) -> Tensor | ops.Draw:
        """What ``ops.ancestral_step_`` takes as noise for ``batch`` rows: a buffer, or how to draw
        inside the step. timesteps: int64 [T], the original timestep of each step."""
        ...

    def load(self, noise: Tensor | ops.Draw, copies: int = 1) -> None:
        """Make ``noise``, as some source of this class has allocated it, this source's own. It has
        so many parts, each for the batch. They may have more rows than that; what those hold is
        never looked at."""
        ...

    def refresh(self, i: int, noise: Tensor | ops.Draw) -> None:
        """Make the noise of step i ready, on the host, before that step runs."""
        ...


class CounterNoise:
    """Noise of the counter-based generator: sample k's numbers depend on (seed, k, timestep) alone.

    The counter holds the original timesteps, so a chain over a subset of them meets the same noise
    at those it visits.

    indices: int64 [B] on the device, the sample indices.
    shape:   shape of one sample, (C, H, W).
    """

    per_step = False

    def __init__(
        self, seed: int, indices: Tensor, shape: tuple[int, ...], backend: str = "auto"
    ) -> None:
        self._seed = seed
        self._indices = indices
        self._shape = shape
        self._backend = backend

    def initial(self, num_steps: int) -> Tensor:
        # x_T belongs to no timestep: the counter's step word is 0.
        return ops.normal(
            self._seed, self._indices, 0, self._shape, Purpose.INITIAL, backend=self._backend
        )

    def allocate(self, batch: int, timesteps: Tensor) -> ops.Draw:
        return ops.Draw.of(0, self._indices.new_zeros(batch), timesteps)

    def load(self, noise: Tensor | ops.Draw, copies: int = 1) -> None:
        assert isinstance(noise, ops.Draw)
        draw = ops.Draw.of(self._seed, self._indices, noise.timesteps)
        noise.seed.copy_(draw.seed)
        parts = noise.indices.view(copies, len(noise.indices) // copies)
        parts[:, : len(self._indices)].copy_(self._indices)

    def refresh(self, i: int, noise: Tensor | ops.Draw) -> None:
        """Nothing to do: the step draws by itself."""


class GivenNoise:
    """The caller's noise, copied into one buffer before each step; one draw may serve several rows.

    fn:     see ``Sampler.sample``.
    drawn:  shape of a draw, [b, C, H, W].
    device: where the chain runs, of any multiple of b rows: row r takes draw r % b.
    """

    per_step = True

    def __init__(self, fn: CallerNoise, drawn: tuple[int, ...], device: torch.device) -> None:
        if not callable(fn):
            raise ValueError(
                f"noise must be callable as noise(step, shape), got {type(fn).__name__}"
            )
        self._fn = fn
        self._drawn = drawn
        self._device = device

    def draw(self, step: int) -> Tensor:
        """One draw, float32 [b, C, H, W] on the device; ValueError for another shape."""
        z = self._fn(step, self._drawn)
        if isinstance(z, np.ndarray):
            z = torch.as_tensor(z)
        if not isinstance(z, Tensor) or tuple(z.shape) != self._drawn:
            got = f"shape {list(z.shape)}" if isinstance(z, Tensor) else type(z).__name__
            raise ValueError(
                f"noise({step}, {self._drawn}) must return a tensor of that shape, got {got}"
            )
        return z.to(self._device, torch.float32)

    def initial(self, num_steps: int) -> Tensor:
        return self.draw(num_steps)

    def allocate(self, batch: int, timesteps: Tensor) -> Tensor:
        shape = (batch, *self._drawn[1:])
        return torch.zeros(shape, dtype=torch.float32, device=self._device)

    def load(self, noise: Tensor | ops.Draw, copies: int = 1) -> None:
        """Nothing to do: ``refresh`` fills the buffer."""

    def refresh(self, i: int, noise: Tensor | ops.Draw) -> None:
        assert isinstance(noise, Tensor)
        copies = len(noise) // max(self._drawn[0], 1)
        noise.view(copies, *self._drawn).copy_(self.draw(i))
