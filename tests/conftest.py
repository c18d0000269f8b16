"""Fixtures for all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

# Triton reads it when a kernel's file is imported: the tests interpret kernels, on any machine.
# tests/ptx compiles them, in processes of its own.
os.environ.setdefault("TRITON_INTERPRET", "1")
# Where there is a GPU, `fastddpm doctor --selfcheck` and benchmarks.gpu test it, uninterpreted.
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import numpy as np
import pytest
import torch
from op_backends import ISAS, instruction_set
from ptx.floats import fma


@pytest.fixture(params=[torch.float64, torch.bfloat16], ids=str)
def other_default_dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    """A caller's own torch.set_default_dtype, which must change nothing of ours."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(before)


@pytest.fixture
def fresh_memory_is_nan() -> Iterator[None]:
    """torch.empty gives NaN, so that an output element that nobody writes shows in a comparison."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def products_are_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter rounds the product of a tl.fma; here only the sum, as on a GPU."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def create_fma(
        self: InterpreterBuilder, x: TensorHandle, y: TensorHandle, z: TensorHandle
    ) -> TensorHandle:
        return TensorHandle(fma(x.data, y.data, z.data), z.dtype.scalar)

    monkeypatch.setattr(InterpreterBuilder, "create_fma", create_fma)


@pytest.fixture
def casts_round_to_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter truncates float32 to bfloat16 and multiplies matrices of it as integers;
    here it rounds and multiplies as a GPU and torch do."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    own = InterpreterBuilder.cast_impl

    def cast(self: InterpreterBuilder, source: TensorHandle, dtype: tl.dtype) -> TensorHandle:
        if (source.dtype.scalar, dtype.scalar) != (tl.float32, tl.bfloat16):
            return own(self, source, dtype)
        bits = source.data.view("uint32").astype("uint64")
        rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
        # A NaN with all its bits set would become a zero.
        rounded[np.isnan(source.data)] = 0x7FC0
        return TensorHandle(rounded.astype("uint16"), dtype.scalar)

    def dot(self: InterpreterBuilder, a: TensorHandle, b: TensorHandle, *rest: Any) -> TensorHandle:
        wide = [
            own(self, factor, tl.float32) if factor.dtype.scalar == tl.bfloat16 else factor
            for factor in (a, b)
        ]
        return own_dot(self, *wide, *rest)

    own_dot = InterpreterBuilder.create_dot
    monkeypatch.setattr(InterpreterBuilder, "cast_impl", cast)
    monkeypatch.setattr(InterpreterBuilder, "create_dot", dot)


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set that this machine runs, in use during the test."""
    with instruction_set(request.param):
        yield request.param
