"""The C++ reverse step with its table bound: one foreign call instead of a registered op's way.

The dispatcher, the schema and the checks of ops.ancestral_step take longer than the step itself on
16 images of 3x32x32. This is the same kernel, for plain tensors that nobody traces.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastddpm.ops.ancestral_step import VARIANCE_CODES
from fastddpm.ops.backends import kernels_of
from fastddpm.ops.library import cpu_library
from fastddpm.ops.program_abi import Prediction

CPU = torch.device("cpu")
# Bytes of a row's number.
_NUMBER = 8


def transformed() -> bool:
    """Whether the call is inside of a transform of torch.func (grad, vmap, jvp)."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def plain(*tensors: Tensor) -> bool:
    """Whether these are contiguous float32 tensors on the CPU that an op would run on at once:
    nothing compiles, traces or counts the call, and no gradient is asked for."""
    for one in tensors:
        if (
            type(one) is not Tensor
            or one.dtype != torch.float32
            or not one.is_cpu
            or not one.is_contiguous()
            or one.requires_grad
        ):
            return False
    return not (
        torch.compiler.is_compiling()
        or transformed()
        # Of this thread: torch's own is_in_torch_dispatch_mode is one flag for all, which threads
        # that leave their modes in another order leave behind.
        or torch._C._len_torch_dispatch_stack()
        or torch._C._is_tracing()
    )


class BoundStep:
    """x_{t-1} and x_0 by a row of this table.

    table: float32 [T, 10] on the CPU, contiguous. clip: bound of |x_0|; None for none. variance,
    prediction: as ops.ancestral_step's.
    """

    def __init__(
        self,
        table: Tensor,
        clip: float | None,
        variance: str = "fixed_small",
        prediction: str = "epsilon",
    ) -> None:
        self._given = table, clip, variance, prediction
        # Kept alive: its addresses are bound, as those of the table.
        self._rows = torch.arange(len(table), device=CPU)
        self._table = table.data_ptr(), len(table)
        self._rows_at = self._rows.data_ptr()
        bound = math.inf if clip is None else clip
        # prediction, variance, clip; no seed, indices or timesteps.
        self._settings = Prediction.of(prediction), VARIANCE_CODES[variance], bound, 0, None, None

    def __reduce__(self) -> tuple[type, tuple[Tensor, float | None, str, str]]:
        """A copy binds the addresses of its own table."""
        return BoundStep, self._given

    @staticmethod
    def available() -> bool:
        """Whether the C++ library is there and asked for."""
        return cpu_library().handle is not None and kernels_of(CPU) == "cpu"

    def __call__(self, x: Tensor, output: Tensor, noise: Tensor, row: int) -> tuple[Tensor, Tensor]:
        """x, noise: `plain`, [B, C, *spatial]. output: the same, [B, 2C, *spatial] if the variance
        is learned. row: in [0, T)."""
        assert 0 <= row < self._table[1] and noise.shape == x.shape
        x_prev, x_0 = torch.empty_like(x), torch.empty_like(x)
        samples = x.shape[0] or 1
        cpu_library().call(
            "fastddpm_ancestral_step",
            *(x_prev.data_ptr(), x_0.data_ptr(), x.data_ptr(), output.data_ptr()),
            *(noise.data_ptr(), *self._table, self._rows_at + _NUMBER * row),
            *(samples, x.numel() // samples, *self._settings, torch.get_num_threads()),
        )
        return x_prev, x_0
