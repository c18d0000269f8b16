"""What the tests of the ops share: the backends that this machine has, and comparison of bits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from fastddpm.ops import library
from fastddpm.ops.backends import interpreting

LIBRARY = library.cpu_library()
ISAS = LIBRARY.isas if LIBRARY.handle is not None else ()
needs_library = pytest.mark.skipif(LIBRARY.handle is None, reason=LIBRARY.reason)
needs_interpreter = pytest.mark.skipif(not interpreting(), reason="needs TRITON_INTERPRET=1")

REFERENCE = "reference"
CPU = pytest.param("cpu", marks=needs_library)
TRITON = pytest.param("triton", marks=[needs_interpreter])


@contextlib.contextmanager
def instruction_set(isa: str) -> Iterator[None]:
    """Inside, the CPU library uses one of the instruction sets that it holds."""
    best = LIBRARY.isa
    LIBRARY.use_isa(isa)
    assert LIBRARY.isa == isa
    try:
        yield
    finally:
        LIBRARY.use_isa(best)


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Inside, torch's default dtype is this one."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(before)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two float tensors of one dtype are equal bit for bit, signs of zero included."""
    integers = {2: torch.int16, 4: torch.int32}[a.element_size()]
    same_kind = a.shape == b.shape and a.dtype == b.dtype
    return same_kind and torch.equal(a.view(integers), b.view(integers))
