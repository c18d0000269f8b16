"""Elementwise ops on 16 images of 3x32x32 beside the torch operations that they replace.

ancestral_step   kernels/ancestral_step/reference.py
normal           torch.randn, of another stream; and the specification, fastddpm/noise.py
torch_normal     torch.randn, of the same stream
q_sample         sqrt(ᾱ) x_0 + sqrt(1 - ᾱ) torch.randn
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.conftest import Compare
from benchmarks.side_by_side import OURS, timed
from fastddpm import GaussianDiffusion, NoiseSchedule, noise, ops
from fastddpm.noise import Purpose
from fastddpm.ops import torch_normal

SHAPE = (16, 3, 32, 32)
ROW = 500
Calls = dict[str, Callable[[], Any]]


def ancestral_step() -> Calls:
    generator = torch.Generator().manual_seed(0)
    x, output, z = (torch.randn(SHAPE, generator=generator) for _ in range(3))
    table = GaussianDiffusion(NoiseSchedule.linear(1000)).step_table().float()
    settings: dict[str, Any] = {"prediction": "epsilon", "variance": "fixed_small", "clip": 1.0}

    def step(backend: str) -> Any:
        row = torch.tensor([ROW])
        return ops.ancestral_step(x, output, z, table, row, **settings, backend=backend)

    both: Calls = {OURS: lambda: step("auto"), "torch": lambda: step("reference")}
    assert all(torch.equal(a, b) for a, b in zip(*(call() for call in both.values()), strict=True))
    return both


def normal() -> Calls:
    indices, generator = torch.arange(SHAPE[0]), torch.Generator().manual_seed(0)
    call = (0, indices, ROW, SHAPE[1:], Purpose.REVERSE)
    found: Calls = {
        OURS: lambda: ops.normal(*call),
        "torch.randn": lambda: torch.randn(SHAPE, generator=generator),
        "specification": lambda: noise.normal(*call),
    }
    assert torch.equal(found[OURS](), found["specification"]())
    return found


def torchs_normal() -> Calls:
    own, theirs = (torch.Generator().manual_seed(0) for _ in range(2))
    found: Calls = {
        OURS: lambda: torch_normal.randn(SHAPE, own),
        "torch.randn": lambda: torch.randn(SHAPE, generator=theirs),
    }
    assert torch.equal(*(call() for call in found.values()))
    return found


def q_sample() -> Calls:
    diffusion = GaussianDiffusion(NoiseSchedule.linear(1000))
    alphas_cumprod = diffusion.schedule.alphas_cumprod.float()
    table = torch.stack([alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()], dim=1)
    generator = torch.Generator().manual_seed(0)
    x_0, t = torch.rand(SHAPE, generator=generator), torch.full(SHAPE[:1], ROW)
    seed, indices = noise.seed_tensor(0), torch.arange(SHAPE[0])

    def torchs() -> Any:
        z = torch.randn(SHAPE, generator=generator)
        signal, spread = (column[t].reshape(-1, 1, 1, 1) for column in table.unbind(1))
        return signal * x_0 + spread * z

    x_t, z = ops.q_sample(x_0, t, table, seed, indices, t)
    assert (x_t - (table[ROW, 0] * x_0 + table[ROW, 1] * z)).abs().max() < 1e-6
    return {OURS: lambda: ops.q_sample(x_0, t, table, seed, indices, t), "torch": torchs}


@pytest.mark.parametrize("op", [ancestral_step, normal, torchs_normal, q_sample])
@torch.inference_mode()
def test_op(op: Callable[[], Calls], compare: Compare) -> None:
    turns = {name: timed(call) for name, call in op().items()}
    compare("Ops", op.__name__, turns, batch=SHAPE[0])
