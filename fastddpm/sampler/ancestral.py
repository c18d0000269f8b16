"""One reverse step of the chain, the unit that every engine runs (Ho et al. 2020, algorithm 2).

    x_{t-1} = mean_theta(x_t, t) + sigma_t z,    z ~ N(0, I), and no z at the last step

The network is called, and everything else is one row of the diffusion's step table.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastddpm import ops
from fastddpm.diffusion import GaussianDiffusion
from fastddpm.sampler.finite import FiniteWatch
from fastddpm.sampler.network import Network
from fastddpm.sampler.noise_source import NoiseSource


@dataclass(frozen=True)
class StepTables:
    """What a step reads through its index, on the device.

    rows:       float32 [T, k], ``GaussianDiffusion.step_table``.
    network_t:  [T], the timesteps that the network is given.
    timesteps:  int64 [T], the original timesteps, which the noise counter holds.
    """

    rows: Tensor
    network_t: Tensor
    timesteps: Tensor

    @classmethod
    def of(cls, diffusion: GaussianDiffusion, device: torch.device) -> StepTables:
        """The tables of a diffusion; ValueError if its chain cannot be run (see ``step_table``)."""
        steps = torch.arange(diffusion.num_steps, device="cpu")
        return cls(
            diffusion.step_table().to(device, torch.float32),
            diffusion.model_timesteps(steps).to(device),
            diffusion.schedule.timesteps.to(device),
        )


class AncestralStep:
    """``step(x, i)``: float32 [B, C, H, W] and int64 [1] -> float32 [B, C, H, W].

    labels: [B, ...] on the device as the network takes them, or None.
    x_0:    a buffer [B, C, H, W] that receives the step's estimate of the image, or None.
    """

    def __init__(
        self,
        network: Network,
        diffusion: GaussianDiffusion,
        tables: StepTables,
        noise: NoiseSource,
        watch: FiniteWatch,
        *,
        backend: str = "auto",
        labels: Tensor | None = None,
        x_0: Tensor | None = None,
    ) -> None:
        self._network = network
        self._diffusion = diffusion
        self._tables = tables
        self._noise = noise
        self._watch = watch
        self._backend = backend
        self._labels = labels
        self._x_0 = x_0

    def __call__(self, x: Tensor, i: Tensor) -> Tensor:
        t = self._tables.network_t.index_select(0, i).expand(x.shape[0])
        output = self._network(x, t, self._labels)
        x, x_0 = ops.ancestral_step(
            x,
            output,
            self._noise.of_step,
            self._tables.rows,
            i,
            prediction=self._diffusion.prediction,
            variance=self._diffusion.variance,
            clip=self._diffusion.clip,
            backend=self._backend,
        )
        # The output too, because clipping turns its Inf into a plausible 1.
        self._watch(i, output, x)
        if self._x_0 is not None:
            self._x_0.copy_(x_0)
        return x
