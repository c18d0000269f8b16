"""Fixtures for all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def fresh_memory_is_nan() -> Iterator[None]:
    """torch.empty gives NaN, so that an output element that nobody writes shows in a comparison."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
