"""Fixtures for all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


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
