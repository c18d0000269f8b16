"""Samplers of every engine for one model, a captured graph among them on a machine without a
GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from capture import emulated

from fastddpm import GaussianDiffusion, Sampler
from fastddpm import engine as engines
from fastddpm.engine.cuda_graph import CudaGraphs
from fastddpm.engine.selection import Engine, Selection
from fastddpm.ops.library import cpu_library

FAST = ("auto", "compile", "cuda_graph", *(("cpu",) if cpu_library().handle else ()))


def _graphs(name: str, device: torch.device) -> Selection:
    engine = Engine(name, "an emulated CUDA graph", CudaGraphs(compile=False).prepare)
    return Selection((engine,), "auto", {})


@contextmanager
def selecting(engine: str) -> Iterator[None]:
    """Inside, "cuda_graph" can be asked for and captures under the emulator of tests/capture."""
    if engine != "cuda_graph":
        yield
        return
    own = mock.patch.object(engines, "select", lambda name, device, *_, **__: _graphs(name, device))
    with emulated(), own:
        yield


@contextmanager
def running(
    engine: str, model: Any, diffusion: GaussianDiffusion, **settings: Any
) -> Iterator[Sampler]:
    """A sampler of the engine, as ``selecting`` gives it."""
    with selecting(engine):
        yield Sampler(model, diffusion, engine, **settings)
