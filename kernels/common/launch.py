"""Launch: one call of a Triton kernel, described before it is made.

A launcher returns what it would launch. Running it is one method; the tests interpret the same
description on a CPU, compile it offline, read its machine code and execute its PTX, so what they
prove is what a GPU runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Launch:
    """A kernel with its grid and arguments.

    kernel:     the ``@triton.jit`` function.
    grid:       programs along each axis, one to three numbers.
    arguments:  the run-time arguments by the kernel's names: tensors, numbers, or None for a
                pointer that is not there.
    constants:  the ``tl.constexpr`` arguments by name.
    num_warps:  warps of 32 threads a program.
    num_stages: loads of a loop that are under way at a time.
    exact:      products and sums are rounded by themselves: the compiler may not fuse them into
                multiply-adds.
    writes:     names of the arguments that the kernel writes, for counting bytes.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    constants: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 3
    exact: bool = False
    writes: tuple[str, ...] = field(default=())

    @property
    def name(self) -> str:
        """The kernel's name."""
        return str(self.kernel.__name__)

    def run(self) -> None:
        """Launch it on the current stream of its tensors' device; no program, no launch."""
        if 0 in self.grid:
            return
        tensor = next(value for value in self.arguments.values() if isinstance(value, Tensor))
        # Triton launches on the current device, which need not be the tensors' own.
        with torch.cuda.device_of(tensor):  # type: ignore[no-untyped-call]
            self.kernel[self.grid](
                **self.arguments,
                **self.constants,
                num_warps=self.num_warps,
                num_stages=self.num_stages,
                enable_fp_fusion=not self.exact,
            )
