"""The calls at which ancestral_step is tested and measured."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fastddpm.kernels.ancestral_step.call import StepCall
from fastddpm.kernels.ancestral_step.reference import LEARNED_VARIANCES, STEP_COLUMNS


class NetworkInput(NamedTuple):
    """The next network input that the step writes: its dtype, channels and layout."""

    dtype: torch.dtype
    channels: int
    channels_last: bool


class Case(NamedTuple):
    """One call. `draws`: the noise is drawn inside from the counter, not read."""

    name: str
    shape: tuple[int, ...]  # [B, C, *spatial]
    prediction: str = "epsilon"
    variance: str = "fixed_large"
    clip: float | None = 1.0
    draws: bool = False
    output: torch.dtype = torch.float32
    channels_last: bool = False  # the model's output
    network: NetworkInput | None = None
    wants_x_0: bool = True
    seed: int = 9
    first_index: int = 2**33

    def call(self, i: int = 2, device: torch.device | str = "cpu") -> StepCall:
        """The call at row i of a table of three, of which the last adds no noise."""
        generator = torch.Generator().manual_seed(3)
        batch, channels, *spatial = self.shape
        outputs = channels * (2 if self.variance in LEARNED_VARIANCES else 1)
        x = _normal(self.shape, generator)
        output = _normal((batch, outputs, *spatial), generator).to(self.output)
        noise = _normal(self.shape, generator)
        signed = self.seed - (1 << 64) if self.seed >> 63 else self.seed
        tensors = StepCall(
            x=x,
            model_output=_channels_last(output) if self.channels_last else output,
            noise=None if self.draws else noise,
            seed=torch.tensor([signed]) if self.draws else None,
            indices=self.first_index + torch.arange(batch) if self.draws else None,
            timesteps=torch.tensor([0, 333, 999]) if self.draws else None,
            table=step_rows(3),
            i=torch.tensor([i]),
            prediction=self.prediction,
            variance=self.variance,
            clip=self.clip,
            x_0=torch.empty(self.shape, dtype=torch.float32) if self.wants_x_0 else None,
            network_input=self._network_input(),
            first_nonfinite=torch.tensor([-1]),
        )
        placed = {name: tensor.to(device) for name, tensor in tensors.tensors.items()}
        return tensors._replace(**placed)

    def _network_input(self) -> Tensor | None:
        if self.network is None:
            return None
        batch, _, *spatial = self.shape
        given = torch.empty(batch, self.network.channels, *spatial, dtype=self.network.dtype)
        return _channels_last(given) if self.network.channels_last else given

    def bytes_moved(self) -> int:
        """The least traffic: x and the output read, noise if given; x written, and what else is
        asked for."""
        elements = math.prod(self.shape)
        outputs = 2 if self.variance in LEARNED_VARIANCES else 1
        moved = 4 * elements * (2 + (not self.draws) + self.wants_x_0)
        moved += elements * outputs * self.output.itemsize
        if self.network is not None:
            rows = elements // self.shape[1]
            moved += rows * self.network.channels * self.network.dtype.itemsize
        return moved


def step_rows(rows: int) -> Tensor:
    """A table of plausible rows, float32 [rows, 10]; the last of several adds no noise."""
    generator = torch.Generator().manual_seed(7)
    table = torch.rand(rows, len(STEP_COLUMNS), generator=generator, dtype=torch.float32)
    columns = {name: k for k, name in enumerate(STEP_COLUMNS)}
    table[:, columns["x0_from_output"]] *= -3
    table[:, columns["mean_from_output"]] = 1
    table[:, columns["log_variance_min"]] = -9 - table[:, columns["log_variance_min"]]
    table[:, columns["log_variance_max"]] = -8 + table[:, columns["log_variance_max"]]
    table[:, columns["noise_gate"]] = 1
    table[-1, [columns["sigma"], columns["noise_gate"]]] = 0 if rows > 1 else 1
    return table


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float32)


def _channels_last(tensor: Tensor) -> Tensor:
    """The same values with the channels innermost in memory."""
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1)


_BF16, _FP16 = torch.bfloat16, torch.float16
# What the captured chain runs: the U-Net's half-precision output, channels last, in; its next
# input, padded to eight channels, out.
_PADDED = NetworkInput(_BF16, 8, True)

CASES = (
    Case("mnist", (8, 1, 28, 28), variance="fixed_small"),
    Case("cifar", (4, 3, 32, 32)),
    Case("cifar_draws", (4, 3, 32, 32), draws=True, wants_x_0=False),
    Case("no_clip", (2, 3, 16, 16), clip=None),
    Case("wide_clip", (2, 3, 16, 16), clip=2.5),
    Case("sample", (2, 3, 16, 16), prediction="sample"),
    Case("v_prediction", (2, 3, 16, 16), prediction="v_prediction"),
    Case("previous_sample", (2, 3, 16, 16), prediction="previous_sample"),
    Case("epsilon_in_x", (2, 3, 16, 16), prediction="epsilon_in_x"),
    Case("learned", (2, 3, 16, 16), variance="learned"),
    Case("learned_range", (2, 3, 16, 16), variance="learned_range"),
    Case("learned_range_draws", (2, 3, 9, 5), variance="learned_range", draws=True),
    Case("odd", (3, 1, 7, 11)),
    Case("odd_draws", (3, 1, 7, 11), draws=True),
    Case("one_element", (1, 1, 1, 1)),
    Case("one_dimensional", (2, 5, 33)),
    Case("vectors", (5, 2), draws=True),
    Case("empty_batch", (0, 3, 8, 8)),
    Case("empty_sample", (2, 3, 0, 8), draws=True, network=_PADDED),
    Case("many_blocks", (3, 3, 250, 251), draws=True),
    Case("biggest_seed", (2, 3, 8, 8), draws=True, seed=2**64 - 1, first_index=2**63 - 2),
    Case("index_carries", (3, 3, 8, 8), draws=True, first_index=2**32 - 2),
)
# What a GPU's chain adds: half-precision and channels-last outputs, and the network's next input.
NETWORK_CASES = (
    Case(
        "cifar_network",
        (3, 3, 32, 32),
        draws=True,
        output=_BF16,
        channels_last=True,
        network=_PADDED,
        wants_x_0=False,
    ),
    Case("bf16", (2, 3, 16, 16), draws=True, output=_BF16),
    Case("fp16", (2, 3, 16, 16), output=_FP16, network=NetworkInput(_FP16, 3, False)),
    Case("channels_last", (2, 3, 16, 16), draws=True, channels_last=True, network=_PADDED),
    Case(
        "learned_network",
        (2, 3, 16, 16),
        variance="learned_range",
        draws=True,
        output=_BF16,
        channels_last=True,
        network=_PADDED,
    ),
    Case(
        "not_padded",
        (2, 3, 8, 8),
        draws=True,
        output=_FP16,
        channels_last=True,
        network=NetworkInput(_FP16, 3, True),
    ),
    Case("padded_planes", (2, 3, 8, 8), network=NetworkInput(torch.float32, 8, False)),
    Case("padded_float32", (2, 4, 6, 6), network=NetworkInput(torch.float32, 8, True)),
    Case(
        "odd_network",
        (2, 3, 5, 7),
        draws=True,
        output=_BF16,
        channels_last=True,
        network=_PADDED,
    ),
    Case("given_network", (2, 3, 6, 6), output=_BF16, channels_last=True, network=_PADDED),
    Case(
        "gray_network",
        (3, 1, 28, 28),
        draws=True,
        output=_BF16,
        channels_last=True,
        network=_PADDED,
        wants_x_0=False,
    ),
    Case("volume", (2, 3, 4, 4, 4), draws=True, channels_last=True, network=_PADDED),
)
