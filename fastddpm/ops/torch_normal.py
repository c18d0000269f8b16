"""What torch.randn draws on the CPU, from the same generator, by the C++ library: the same bits.

torch makes its Mersenne Twister's words one by one, which is most of a draw. The kernel makes
LANES of them at once and repeats torch's AVX2 arithmetic; it is used only where a trial has shown
that this torch, on this machine, gives these bits. Specification: torch.randn.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastddpm.ops.library import cpu_library

# Fewer are drawn by another formula.
SMALLEST = 16
# One in a thousand normals shows another fusing of multiply and add.
TRIAL = 65536 + 5


def randn(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """torch.randn(shape, generator=generator) in float32, and the same state left in it.

    generator: on the CPU. Another thread must not draw from it meanwhile.
    """
    if math.prod(shape) < SMALLEST or unsupported():
        return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
    return _native(shape, generator)


def unsupported() -> list[str]:
    """Why torch itself draws here; empty if the library does."""
    library = cpu_library()
    if library.handle is None:
        return [library.reason]
    return _differences(library.isa)


@functools.cache
def _differences(isa: str) -> list[str]:
    """What a trial on this instruction set says against it."""
    if isa == "baseline":
        return ["the baseline instruction set has no such kernel"]
    own, theirs = (torch.Generator().manual_seed(0) for _ in range(2))
    expected = torch.randn(TRIAL, generator=theirs, dtype=torch.float32, device="cpu")
    same = torch.equal(_native((TRIAL,), own).view(torch.int32), expected.view(torch.int32))
    if same and torch.equal(own.get_state(), theirs.get_state()):
        return []
    return [f"this torch draws other normals than the {isa} kernel"]


def _native(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    state = generator.get_state()
    out = torch.empty(shape, dtype=torch.float32, device="cpu")
    cpu_library().call("fastddpm_torch_normal", out.data_ptr(), out.numel(), state.data_ptr())
    generator.set_state(state)
    return out
