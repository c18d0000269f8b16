"""ops.using: the backend of the calls that leave it open, on one thread, for one block of code."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fastddpm import ops
from fastddpm.ops.backends import choose_backend, kernels_of

CPU = torch.device("cpu")
REASONS = {"cpu": [], "triton": ["x is too small"]}


def chosen(backend: str = "auto") -> str:
    return choose_backend("op", backend, CPU, REASONS)


def test_calls_that_leave_it_open_ask_for_this_backend_by_name() -> None:
    assert chosen() == "cpu"
    with ops.using("reference"):
        assert chosen() == "reference"
        assert chosen("cpu") == "cpu"
    with ops.using("triton"), pytest.raises(ValueError, match="x is too small"):
        chosen()
    assert chosen() == "cpu"


def test_blocks_nest_and_end_with_an_error_too() -> None:
    with ops.using("reference"):
        with ops.using("auto"):
            assert chosen() == "cpu"
        assert kernels_of(CPU) == "reference"
        with pytest.raises(KeyError), ops.using("cpu"):
            raise KeyError
        assert kernels_of(CPU) == "reference"
    assert kernels_of(CPU) == "cpu"


def test_other_threads_do_not_see_it() -> None:
    with ops.using("reference"), ThreadPoolExecutor(1) as pool:
        assert pool.submit(chosen).result() == "cpu"


def test_refuses_an_unknown_name() -> None:
    with pytest.raises(ValueError, match="got 'cuda'"), ops.using("cuda"):
        pass
