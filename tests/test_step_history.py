"""The step whose noise is the estimate of the step before, which it replaces by its own: one buffer
on every backend, with the bits of two."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from op_backends import CPU, REFERENCE, TRITON, same_bits
from torch import Tensor

from fastddpm import GaussianDiffusion, NoiseSchedule, Sampler, ops
from fastddpm.sampler import Measured
from fastddpm.sampler.methods import dpm_solver

SCHEDULE = NoiseSchedule.linear(1000).respace(range(0, 1000, 100))
# Of the table's multistep rows.
ROW = 4


@pytest.mark.parametrize("backend", [REFERENCE, CPU, TRITON])
@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (3, 1, 5, 7), (1, 4, 33), (2, 3, 40, 40)], ids=str)
def test_one_buffer_gives_the_bits_of_two(backend: str, shape: tuple[int, ...]) -> None:
    method, i = dpm_solver(GaussianDiffusion(SCHEDULE), 1.0), torch.tensor([ROW])
    x, before, output = torch.randn(3, *shape).unbind()

    def step(backend: str, noise: Tensor, x_0: Tensor) -> Tensor:
        state = x.clone()
        ops.ancestral_step_(
            *(state, output, noise, method.rows.float(), i),
            prediction=method.prediction,
            variance=method.variance,
            clip=method.clip,
            x_0=x_0,
            backend=backend,
        )
        return state

    history = before.clone()
    found = step(backend, history, history)
    apart = torch.full(shape, torch.nan)
    expected = step(backend, before, apart)
    assert same_bits(found, expected) and same_bits(history, apart)
    assert same_bits(found, step("reference", before, apart))
    assert not torch.allclose(found, step(backend, torch.zeros(shape), apart), atol=1e-3)


@pytest.mark.parametrize("method", ["ddim", "dpm-solver++"])
@pytest.mark.parametrize("engine", ["reference", "auto"])
def test_a_chain_that_failed_leaves_nothing_behind(method: str, engine: str) -> None:
    def model(x: Tensor, t: Tensor) -> Tensor:
        return 0.3 * x

    sampler = Sampler(model, GaussianDiffusion(SCHEDULE, clip=None), engine, shape=(1, 4, 4))
    expected = sampler.sample(2, method=method)
    for bad in (torch.nan, torch.inf):
        with pytest.raises(FloatingPointError, match="at timestep 900"):
            sampler.sample(x_T=torch.full((2, 1, 4, 4), bad), method=method)
        assert torch.equal(sampler.sample(2, method=method), expected)


@pytest.mark.parametrize("backend", ["reference", CPU, TRITON])
@pytest.mark.parametrize("variance", ["learned", "learned_range"])
def test_a_variance_that_the_network_gives_has_no_share(backend: str, variance: str) -> None:
    """In the methods that have their own: the chain is that of the network without it."""

    def plain(x: Tensor, t: Tensor) -> Tensor:
        return 0.3 * torch.tanh(x) + 1e-3 * t.reshape(-1, 1, 1, 1)

    def learned(x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([plain(x, t), 3 * x], dim=1)

    one, other = (
        Sampler(model, GaussianDiffusion(SCHEDULE, variance=given), shape=(3, 8, 8))
        for model, given in ((learned, variance), (plain, "fixed_small"))
    )
    images, known = torch.rand(2, 3, 8, 8) - 0.5, torch.rand(8, 8) < 0.5
    measured = Measured(SCHEDULE.timesteps, torch.full((10,), 0.8).double(), SCHEDULE.betas, 1)
    runs: list[Any] = [
        lambda s: s.sample(2, method="ddim"),
        lambda s: s.sample(2, method="ddim", eta=0.7),
        lambda s: s.sample(2, method="dpm-solver++"),
        lambda s: s.sample(2, method="dpm-solver++", on_x_0=lambda x_0: 0.9 * x_0),
        lambda s: s.img2img(images, 7, method="dpm-solver++"),
        lambda s: s.sample(2, variance=measured),
        lambda s: s.sample(2, variance=measured, method="ddim"),
        lambda s: s.inpaint(images, known, jump_length=3, resamplings=2),
        lambda s: s.invert(images),
    ]
    with ops.using(backend):
        for run in runs:
            torch.testing.assert_close(run(one), run(other), rtol=1e-4, atol=1e-4)
