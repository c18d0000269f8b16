"""One reverse step of the chain, the unit that every engine runs (Ho et al. 2020, algorithm 2).

    x_{t-1} = mean_theta(x_t, t) + sigma_t z,    z ~ N(0, I), and no z at the last step

The network is called, and everything else is one fused kernel that reads a row of the diffusion's
step table.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastddpm import ops
from fastddpm.diffusion import GaussianDiffusion
from fastddpm.sampler.finite import NONE_YET, check_finite
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
    """``step(x, i)``: takes one step in place on the state x, float32 [B, C, H, W]; i is int64 [1].

    All that a step reads or writes besides lies in tensors made here once, so that one capture of
    it serves every step of every call: ``load`` fills them for a call, ``begin`` for a state.

    noise:  a buffer or a draw with B rows.
    labels: [B, ...] on the device, or None.
    x_0:    a buffer [B, C, H, W] that receives each step's estimate of the image, or None.
    """

    def __init__(
        self,
        network: Network,
        diffusion: GaussianDiffusion,
        tables: StepTables,
        shape: tuple[int, ...],
        noise: Tensor | ops.Draw,
        *,
        backend: str = "auto",
        labels: Tensor | None = None,
        x_0: Tensor | None = None,
    ) -> None:
        self.x_0 = x_0
        self._network = network
        self._diffusion = diffusion
        self._tables = tables
        self._noise = noise
        self._backend = backend
        condition = network.condition(labels, shape[0])
        self._condition = None if condition is None else condition.clone()
        self._network_input = network.input_buffer(shape)
        self._first_nonfinite = torch.full_like(tables.timesteps[:1], NONE_YET)

    def load(self, source: NoiseSource, labels: Tensor | None) -> None:
        """Make the static tensors this call's: its noise, and labels [b, ...] for b <= B rows."""
        source.load(self._noise)
        if self._condition is not None and labels is not None:
            condition = self._network.condition(labels, len(labels))
            assert condition is not None
            self._condition[: len(labels)].copy_(condition)
        self._first_nonfinite.fill_(NONE_YET)

    def refresh(self, source: NoiseSource, i: int) -> None:
        """Make the noise of step i ready."""
        source.refresh(i, self._noise)

    def check_finite(self) -> None:
        """Raise FloatingPointError if a step since ``load`` was not finite; waits for it."""
        check_finite(self._first_nonfinite, self._tables.timesteps)

    def begin(self, x: Tensor) -> None:
        """Write the network's first input; every step writes that of the next."""
        if self._network_input is not None:
            self._network_input[:, : x.shape[1]].copy_(x)

    def __call__(self, x: Tensor, i: Tensor) -> Tensor:
        network_input = x if self._network_input is None else self._network_input
        ops.ancestral_step_(
            x,
            self._network.at_step(network_input, i, self._condition),
            self._noise,
            self._tables.rows,
            i,
            prediction=self._diffusion.prediction,
            variance=self._diffusion.variance,
            clip=self._diffusion.clip,
            x_0=self.x_0,
            network_input=self._network_input,
            first_nonfinite=self._first_nonfinite,
            backend=self._backend,
        )
        return x
