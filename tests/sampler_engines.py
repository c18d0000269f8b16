"""Samplers of every engine for one model, a captured graph among them on a machine without a
GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from capture import emulated

from fastddpm import GaussianDiffusion, Sampler
from fastddpm.engine.cuda_graph import CudaGraphs
from fastddpm.engine.selection import Engine, Selection
from fastddpm.ops.library import cpu_library
from fastddpm.sampler import place

FAST = ("auto", "compile", "cuda_graph", *(("cpu",) if cpu_library().handle else ()))


def _graphs(name: str, device: torch.device) -> Selection:
    engine = Engine(name, "an emulated CUDA graph", CudaGraphs(compile=False).prepare)
    return Selection((engine,), "auto", {})


@contextmanager
def running(
    engine: str, model: Any, diffusion: GaussianDiffusion, **settings: Any
) -> Iterator[Sampler]:
    """A sampler of the engine; "cuda_graph" captures under the emulator of tests/capture."""
    with ExitStack() as stack:
        if engine == "cuda_graph":
            stack.enter_context(emulated())
            patch = mock.patch.object(
                place.engines, "select", lambda name, device, *_, **__: _graphs(name, device)
            )
            stack.enter_context(patch)
        yield Sampler(model, diffusion, engine, **settings)
