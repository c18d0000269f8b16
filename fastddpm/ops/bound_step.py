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

CPU = torch.device("cpu")
# Bytes of a row's number.
_NUMBER = 8


def transformed() -> bool:
    """Whether the call is inside of a transform of torch.func (grad, vmap, jvp)."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def plain(*tensors: Tensor) -> bool:
    """Whether these are contiguous float32 tensors on the CPU that an op would run on at once:
    nothing compiles, traces or counts the call, and no gradient is asked for."""
    return (
        all(
            type(one) is Tensor
            and one.dtype == torch.float32
            and one.device == CPU
            and one.is_contiguous()
            and not one.requires_grad
            for one in tensors
        )
        and not torch.compiler.is_compiling()
        and not transformed()
        # Of this thread: torch's own is_in_torch_dispatch_mode is one flag for all, which threads
        # that leave their modes in another order leave behind.
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    )


class BoundStep:
    """x_{t-1} and x_0 by a row of this table.

    table: float32 [T, 10] on the CPU, contiguous. clip: bound of |x_0|; None for none. variance: as
    ops.ancestral_step's.
    """

    def __init__(self, table: Tensor, clip: float | None, variance: str = "fixed_small") -> None:
        # Kept alive: their addresses are bound.
        self._table, self._rows = table, torch.arange(len(table), device=CPU)
        self._table_at, self._rows_at = table.data_ptr(), self._rows.data_ptr()
        self._clip, self._variance = clip, variance

    def __reduce__(self) -> tuple[type, tuple[Tensor, float | None, str]]:
        """A copy binds the addresses of its own table."""
        return BoundStep, (self._table, self._clip, self._variance)

    @staticmethod
    def available() -> bool:
        """Whether the C++ library is there and asked for."""
        return cpu_library().handle is not None and kernels_of(CPU) == "cpu"

    def __call__(self, x: Tensor, output: Tensor, noise: Tensor, row: int) -> tuple[Tensor, Tensor]:
        """x, noise: `plain`, [B, C, *spatial]. output: the same, [B, 2C, *spatial] if the variance
        is learned. row: in [0, T)."""
        assert 0 <= row < len(self._table) and noise.shape == x.shape
        x_prev, x_0 = torch.empty_like(x), torch.empty_like(x)
        clip = math.inf if self._clip is None else self._clip
        samples = max(len(x), 1)
        cpu_library().call(
            "fastddpm_ancestral_step",
            *(x_prev.data_ptr(), x_0.data_ptr(), x.data_ptr(), output.data_ptr()),
            *(noise.data_ptr(), self._table_at, len(self._table), self._rows_at + _NUMBER * row),
            *(samples, x.numel() // samples, 0, VARIANCE_CODES[self._variance], clip),
            *(0, None, None, torch.get_num_threads()),
        )
        return x_prev, x_0
