"""Where a chain's noise comes from: the counter (seed, sample index), or the caller."""

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
    """Standard normal noise for one batch."""

    @property
    def of_step(self) -> Tensor | ops.Draw:
        """What ``ops.ancestral_step`` takes as noise: a buffer, or how to draw inside the step."""
        ...

    def initial(self, num_steps: int) -> Tensor:
        """x_T, float32 [B, C, H, W]."""
        ...

    def refresh(self, i: int) -> None:
        """Make the noise of step i ready, on the host, before that step runs."""
        ...


class CounterNoise:
    """Noise of the counter-based generator: sample k's numbers depend on (seed, k, timestep) alone.

    indices:   int64 [B] on the device, the sample indices.
    shape:     shape of one sample, (C, H, W).
    timesteps: int64 [T] on the device, the original timestep of each step; the counter holds these,
               so a chain over a subset of the timesteps meets the same noise at those it visits.
    """

    def __init__(
        self,
        seed: int,
        indices: Tensor,
        shape: tuple[int, ...],
        timesteps: Tensor,
        backend: str = "auto",
    ) -> None:
        self._draw = ops.Draw(seed, indices, timesteps)
        self._shape = shape
        self._backend = backend

    @property
    def of_step(self) -> ops.Draw:
        return self._draw

    def initial(self, num_steps: int) -> Tensor:
        seed, indices = self._draw.seed, self._draw.indices
        # x_T belongs to no timestep: the counter's step word is 0.
        return ops.normal(seed, indices, 0, self._shape, Purpose.INITIAL, backend=self._backend)

    def refresh(self, i: int) -> None:
        """Nothing to do: the step draws by itself."""


class GivenNoise:
    """The caller's noise, copied into one buffer before each step; one draw may serve several rows.

    fn:     see ``Sampler.sample``.
    drawn:  shape of a draw, [b, C, H, W].
    copies: the chain runs copies * b rows; row r takes draw r % b.
    """

    def __init__(
        self, fn: CallerNoise, drawn: tuple[int, ...], device: torch.device, copies: int = 1
    ) -> None:
        self._fn = fn
        self._drawn = drawn
        self._buffer = torch.empty((copies, *drawn), dtype=torch.float32, device=device)

    @property
    def of_step(self) -> Tensor:
        return self._buffer.flatten(0, 1)

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
        return z.to(self._buffer)

    def initial(self, num_steps: int) -> Tensor:
        return self.draw(num_steps)

    def refresh(self, i: int) -> None:
        self._buffer.copy_(self.draw(i))
