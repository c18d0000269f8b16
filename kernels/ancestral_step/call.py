"""StepCall: all that one reverse step reads and writes, named once for every backend."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastddpm.kernels.ancestral_step.reference import (
    LEARNED_VARIANCES,
    STEP_COLUMNS,
    STEP_PREDICTIONS,
    VARIANCES,
)

NETWORK_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class StepCall(NamedTuple):
    """The arguments of fastddpm::ancestral_step_ in the order of its schema, but the backend.

    Reads:
        model_output: [B, C, *spatial], or [B, 2C, *spatial] if the variance is learned; floating.
        noise: float32 [B, C, *spatial], or None: drawn here as Purpose.REVERSE of noise.py from
            seed int64 [1], indices int64 [B] and the row's entry of timesteps int64 [T].
        table: float32 [T, 10], the columns STEP_COLUMNS.
        i: int64 [1], the row.
    Writes, where not None:
        x: float32 [B, C, *spatial], contiguous; x_t becomes x_{t-1}.
        x_0: float32 like x, contiguous; the estimate. It may be noise, of which every element is
            read before it is written.
        network_input: [B, C', *spatial], C' >= C, contiguous or channels last, one of
            NETWORK_DTYPES; x_{t-1} rounded to its dtype, and zeros in the channels from C on.
        first_nonfinite: int64 [1]; the maximum of itself and i if model_output or x_{t-1} holds NaN
            or Inf. i counts down, so the maximum is the first step that did.
    """

    x: Tensor
    model_output: Tensor
    noise: Tensor | None
    seed: Tensor | None
    indices: Tensor | None
    timesteps: Tensor | None
    table: Tensor
    i: Tensor
    prediction: str
    variance: str
    clip: float | None
    x_0: Tensor | None = None
    network_input: Tensor | None = None
    first_nonfinite: Tensor | None = None

    @property
    def learns_variance(self) -> bool:
        """Whether the output has 2C channels."""
        return self.variance in LEARNED_VARIANCES

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the call by name."""
        return {name: v for name, v in self._asdict().items() if isinstance(v, Tensor)}

    def check(self) -> None:
        """Raise ValueError unless names, shapes and dtypes are as the docstring says."""
        _choice("prediction", self.prediction, STEP_PREDICTIONS)
        _choice("variance", self.variance, VARIANCES)
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip: expected a number above 0 or None, got {self.clip}")
        x, output = self.x, self.model_output
        if x.ndim < 2 or x.dtype != torch.float32:
            raise ValueError(f"x: expected float32 [B, C, *spatial], got {_described(x)}")
        if not output.is_floating_point():
            raise ValueError(f"model_output: expected a floating dtype, got {output.dtype}")
        batch, channels, *spatial = x.shape
        outputs = channels * (2 if self.learns_variance else 1)
        _expect("model_output", output, (batch, outputs, *spatial), output.dtype)
        rows = self.table.shape[0]
        _expect("table", self.table, (rows, len(STEP_COLUMNS)), torch.float32)
        _expect("i", self.i, (1,), torch.int64)
        _expect("noise", self.noise, (batch, channels, *spatial), torch.float32)
        _expect("noise.seed", self.seed, (1,), torch.int64)
        _expect("noise.indices", self.indices, (batch,), torch.int64)
        _expect("noise.timesteps", self.timesteps, (rows,), torch.int64)
        _expect("x_0", self.x_0, (batch, channels, *spatial), torch.float32)
        _expect("first_nonfinite", self.first_nonfinite, (1,), torch.int64)
        self._check_network_input()
        for name, tensor in self.tensors.items():
            if tensor.device != x.device:
                raise ValueError(f"{name}: expected {x.device} like x, got {tensor.device}")

    def _check_network_input(self) -> None:
        given = self.network_input
        if given is None:
            return
        batch, channels, *spatial = self.x.shape
        wide = given.ndim == self.x.ndim and given.shape[1] >= channels
        if (
            not wide
            or given.dtype not in NETWORK_DTYPES
            or tuple(given.shape) != (batch, given.shape[1], *spatial)
        ):
            raise ValueError(
                f"network_input: expected float32, bfloat16 or float16 with the shape "
                f"{[batch, channels, *spatial]} or more channels, got {_described(given)}"
            )

    def check_layouts(self) -> None:
        """Raise ValueError unless what is written lies in memory as the docstring says."""
        for name in ("x", "x_0"):
            tensor = self.tensors.get(name)
            if tensor is not None and not tensor.is_contiguous():
                raise ValueError(f"{name}: expected a contiguous tensor, it is written in place")
        given = self.network_input
        if given is not None and not (given.is_contiguous() or is_channels_last(given)):
            raise ValueError("network_input: expected a contiguous or a channels-last tensor")


def is_channels_last(tensor: Tensor) -> bool:
    """Whether a tensor [B, C, *spatial] lies in memory as [B, *spatial, C]."""
    return tensor.movedim(1, -1).is_contiguous()


def _choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {choices}, got {value!r}")


def _expect(name: str, tensor: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """ValueError unless the tensor is of this shape and dtype, or there is none."""
    if tensor is not None and (tuple(tensor.shape) != shape or tensor.dtype != dtype):
        raise ValueError(f"{name}: expected {dtype} {list(shape)}, got {_described(tensor)}")


def _described(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"
