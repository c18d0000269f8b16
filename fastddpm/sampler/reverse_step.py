"""One reverse step of the chain, the unit that every engine runs (Ho et al. 2020, algorithm 2).

    x_{t-1} = mean_theta(x_t, t) + sigma_t z,    z ~ N(0, I), and no z at the last step

The network is called, and everything else is one fused kernel that reads a row of the chain's step
table (methods.py). Where z is no noise but the estimate of x_0 of the step before, the kernel reads
it from where it then writes its own. What guides the network's output, or changes the estimate,
comes in between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fastddpm import ops
from fastddpm.diffusion import GaussianDiffusion
from fastddpm.kernels.ancestral_step.reference import write_network_input
from fastddpm.sampler.edited_estimate import EditedEstimate
from fastddpm.sampler.finite import NONE_YET, check_finite
from fastddpm.sampler.guidance import Guidance
from fastddpm.sampler.methods import Method
from fastddpm.sampler.network import Network
from fastddpm.sampler.noise_source import NoiseSource
from fastddpm.sampler.repaint import Known


@dataclass(frozen=True)
class StepTables:
    """What a step reads through its index, on the device.

    rows:       float32 [S, k], of a ``Method`` or ``GaussianDiffusion.step_table``.
    network_t:  [S], the timesteps that the network is given.
    timesteps:  int64 [S], what the noise counter holds: the original timesteps, if each is there
                once.
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

    @classmethod
    def of_method(cls, method: Method, device: torch.device) -> StepTables:
        """The tables of a method."""
        return cls(
            method.rows.to(device, torch.float32),
            method.network_t.to(device),
            method.counters.to(device),
        )


class StepSettings(Protocol):
    """How a row is read: a diffusion, or a method."""

    @property
    def prediction(self) -> str: ...
    @property
    def variance(self) -> str: ...
    @property
    def clip(self) -> float | None: ...


class ReverseStep:
    """``step(x, i)``: takes one step in place on the state x, float32 [B, C, H, W]; i is int64 [1].

    All that a step reads or writes besides lies in tensors made here once, so that one capture of
    it serves every step of every call: ``load`` fills them for a call, ``begin`` for a state.

    noise:    a buffer or a draw with B rows; None: z is x_0 of the step before, 0 in the first.
    labels:   [B, ...] on the device, or None.
    x_0:      a buffer [B, C, H, W] that receives each step's estimate of the image, or None; needed
              where there is no noise.
    first:    float32 [S, 10], the rows of a chain's first step where those are others.
    guidance: what the network's output goes through.
    edited:   what x_0 goes through.
    known:    what part of the image is known.
    """

    def __init__(
        self,
        network: Network,
        diffusion: StepSettings,
        tables: StepTables,
        shape: tuple[int, ...],
        noise: Tensor | ops.Draw | None,
        *,
        backend: str = "auto",
        labels: Tensor | None = None,
        x_0: Tensor | None = None,
        first: Tensor | None = None,
        guidance: Guidance | None = None,
        edited: EditedEstimate | None = None,
        known: Known | None = None,
    ) -> None:
        self.x_0 = x_0
        self._network = network
        self._settings = diffusion
        self._tables = tables
        self._rows = tables.rows if first is None else tables.rows.clone()
        self._first = first
        self._noise = noise
        self._backend = backend
        self._guidance = guidance
        self._edited = edited
        self._known = known
        condition = network.condition(labels, shape[0])
        self._condition = None if condition is None else condition.clone()
        self._network_input = network.input_buffer(shape)
        self._first_nonfinite = torch.full_like(tables.timesteps[:1], NONE_YET)

    def load(
        self, source: NoiseSource, labels: Tensor | None, start: int = 0, copies: int = 1
    ) -> None:
        """Make the static tensors this call's: its noise, labels [b, ...] for b <= B rows, and the
        row of its first step. copies: how often the batch's rows are there."""
        if self._noise is not None:
            source.load(self._noise, copies)
        if self._condition is not None and labels is not None:
            condition = self._network.condition(labels, len(labels))
            assert condition is not None
            self._condition[: len(labels)].copy_(condition)
        if self._first is not None:
            self._rows.copy_(self._tables.rows)
            self._rows[start].copy_(self._first[start])
            if self._edited is not None:
                self._edited.load(self._rows)
        self._first_nonfinite.fill_(NONE_YET)

    def refresh(self, source: NoiseSource, i: int) -> None:
        """Make the noise of step i ready."""
        if self._noise is not None:
            source.refresh(i, self._noise)

    def check_finite(self, timesteps: Tensor | None = None) -> None:
        """Raise FloatingPointError if a step since ``load`` was not finite; waits for it.

        timesteps: int64 [S], what it calls the steps; None: as the noise counter does.
        """
        named = self._tables.timesteps if timesteps is None else timesteps
        check_finite(self._first_nonfinite, named)

    def begin(self, x: Tensor) -> None:
        """Write the network's first input; every step writes that of the next."""
        if self._network_input is not None:
            self._network_input[:, : x.shape[1]].copy_(x)
        if self._noise is None and self.x_0 is not None:
            self.x_0.zero_()

    def __call__(self, x: Tensor, i: Tensor) -> Tensor:
        network_input = x if self._network_input is None else self._network_input
        output = self._network.at_step(network_input, i, self._condition)
        if self._guidance is not None:
            output = self._guidance(output)
        # What comes after the step writes the network's next input by itself.
        last = self._edited is None and self._known is None
        z = self.x_0 if self._noise is None else self._noise
        assert z is not None
        if self._edited is None:
            self._step(x, output, z, i, self._rows, self.x_0, writes_input=last)
        else:
            self._edited.step(self._step, x, output, z, i, self.x_0)
        if self._known is not None:
            assert self._noise is not None
            self._known.keep(x, self._noise, i)
        if not last and self._network_input is not None:
            write_network_input(self._network_input, x)
        return x

    def _step(
        self,
        x: Tensor,
        output: Tensor,
        z: Tensor | ops.Draw,
        i: Tensor,
        rows: Tensor,
        x_0: Tensor | None,
        *,
        writes_input: bool = False,
        of_x_0: bool = False,
    ) -> None:
        """The one affine step. of_x_0: the output is x_0 itself, and bounded already."""
        own = self._settings
        ops.ancestral_step_(
            *(x, output, z, rows, i),
            prediction="sample" if of_x_0 else own.prediction,
            variance="fixed_small" if of_x_0 else own.variance,
            clip=None if of_x_0 else own.clip,
            x_0=x_0,
            network_input=self._network_input if writes_input else None,
            first_nonfinite=self._first_nonfinite,
            backend=self._backend,
        )
