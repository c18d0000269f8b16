"""Interpolation at several t, and branches of a chain: one batch, and what each would be alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from op_backends import needs_library
from sampler_engines import FAST, running
from torch import Tensor
from unet_networks import network

from fastddpm import GaussianDiffusion, NoiseSchedule, Sampler

SHAPE = (3, 8, 8)
T = 12
DIFFUSION = GaussianDiffusion(NoiseSchedule.linear(T, 0.02, 0.4))
# Neither in order nor without repeats.
LEVELS = [5, 11, 0, 5, 8]
LAMBDAS = [0.0, 0.3, 1.0]


class Rowwise:
    """A model whose rows do not meet, and the batches that it was called with."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        self.batches.append(len(x))
        shift = 0.0 if labels is None else 0.1 * labels.reshape(-1, 1, 1, 1)
        return 0.3 * x + t.reshape(-1, 1, 1, 1) * 1e-2 + shift


def sampler(model: Any = None) -> Sampler:
    return Sampler(model or Rowwise(), DIFFUSION, "reference", shape=SHAPE)


def ends(batch: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    a, b = 2 * torch.rand(2, *batch, *SHAPE, generator=generator) - 1
    return a, b


@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("resample_noise", [False, True])
@pytest.mark.parametrize("labelled", [False, True])
def test_several_steps_are_what_each_is_alone(
    batch: tuple[int, ...], resample_noise: bool, labelled: bool
) -> None:
    a, b = ends(batch)
    how: dict[str, Any] = {"seed": 3, "resample_noise": resample_noise}
    if labelled:
        how["labels"] = list(range(len(LAMBDAS) * (batch or (1,))[0]))
    model = Rowwise()
    grid = sampler(model).interpolate(a, b, LEVELS, LAMBDAS, **how)
    assert grid.shape == (5, 3, *batch, *SHAPE)
    rows = 3 * (batch or (1,))[0]
    # Twelve calls and not 5 + 11 + ... + 5 of them: rows join at 8, 5 (two of them) and 0.
    assert model.batches == [rows] * 3 + [2 * rows] * 3 + [4 * rows] * 5 + [5 * rows]
    for t, images in zip(LEVELS, grid, strict=True):
        assert torch.equal(images, sampler().interpolate(a, b, t, LAMBDAS, **how))
    assert torch.equal(grid[0], grid[3]) and not torch.equal(grid[0], grid[1])
    one = sampler().interpolate(a, b, [5], LAMBDAS, **how)
    assert torch.equal(one, grid[:1])
    again = sampler().interpolate(a, b, torch.tensor(LEVELS), LAMBDAS, **how)
    assert torch.equal(again, grid)


def test_steps_are_counted_and_checked() -> None:
    a, b = ends()
    seen: list[tuple[int, int]] = []
    sampler().interpolate(a, b, [2, 6], LAMBDAS, progress=lambda *done: seen.append(done))
    assert seen == [(k, 7) for k in range(1, 8)]
    for t, message in (
        ([], "at least one step"),
        ([3, 12], "from 0 to 11, got 12"),
        ([3, 1.5], "t must be integers"),
        ("3", "t must be"),
        ([[3]], "t must be integers"),
    ):
        with pytest.raises(ValueError, match=message):
            sampler().interpolate(a, b, t, LAMBDAS)
    with pytest.raises(ValueError, match="noise= draws for one t, got 2"):
        sampler().interpolate(a, b, [2, 6], noise=lambda step, shape: torch.zeros(shape))
    none = torch.empty(0, *SHAPE)
    assert sampler().interpolate(none, none, [2, 6], LAMBDAS).shape == (2, 3, 0, *SHAPE)


def test_branches_share_the_trunks_states() -> None:
    """Each x_t is the trunk's own, and what follows of it is a chain from there."""
    model = Rowwise()
    found = sampler(model).branches(4, LEVELS, 2, seed=9)
    assert found.x_t.shape == (5, *SHAPE) and found.images.shape == (5, 2, *SHAPE)
    assert model.batches == [3] * 3 + [5] * 3 + [9] * 5 + [11]
    assert torch.equal(found.trunk, sampler().sample(indices=[4], seed=9)[0])
    states = {step.t: step.x_t[0] for step in sampler().stream(indices=[4], seed=9, every=1)}
    for t, x_t in zip(LEVELS, found.x_t, strict=True):
        if t < T - 1:
            # The state that step t begins with is the one with t + 1 steps to go.
            assert torch.equal(x_t, states[t + 1])
        one = sampler().branches(4, t, 2, seed=9)
        position = LEVELS.index(t)
        assert torch.equal(one.x_t[0], x_t) and torch.equal(one.images[0], found.images[position])


def test_branches_have_noise_of_their_own() -> None:
    found = sampler().branches(0, [T - 1, 6, 1], 3, seed=2)
    flat = found.images.flatten(2)
    for images, shared in zip(flat, found.x_t, strict=True):
        others = [*images, found.trunk.flatten(), shared.flatten()]
        assert all(not torch.allclose(x, y) for k, x in enumerate(others) for y in others[:k])
    # The later they part, the nearer they stay.
    spread = flat.std(1).mean(1).tolist()
    assert spread[0] > spread[1] > spread[2] > 0
    # Branch j is the same however many there are; other samples and seeds have others.
    assert torch.equal(sampler().branches(0, 6, 5, seed=2).images[0, :3], found.images[1])
    for index, seed in ((1, 2), (0, 3)):
        other = sampler().branches(index, 6, 3, seed=seed).images[0]
        assert not torch.allclose(other, found.images[1])


def test_branches_refuse_what_does_not_fit() -> None:
    for given, message in (
        ({"index": -1}, "index must lie in 0 to"),
        ({"index": 1 << 40}, "index must lie in 0 to"),
        ({"n": 0}, "n must be at least 1"),
        ({"n": 1 << 22}, "n must lie in 1 to"),
        ({"t": 12}, "step indices from 0 to 11, got"),
        ({"t": []}, "at least one step"),
    ):
        with pytest.raises(ValueError, match=message):
            sampler().branches(**{"t": 3, "n": 2} | given)


@pytest.mark.parametrize("engine", [engine for engine in FAST if engine != "compile"])
def test_engines_agree(engine: str) -> None:
    unet, (a, b) = network(num_class_embeds=10), ends()
    reference = Sampler(unet, DIFFUSION, "reference")
    grid = reference.interpolate(a, b, [9, 4], LAMBDAS, labels=3)
    branches = reference.branches(2, [8, 3], 2, labels=3)
    with running(engine, unet, DIFFUSION) as fast:
        for _ in range(2):
            found = fast.interpolate(a, b, [9, 4], LAMBDAS, labels=3)
            torch.testing.assert_close(found, grid, rtol=2e-3, atol=2e-3)
            forked = fast.branches(2, [8, 3], 2, labels=3)
            torch.testing.assert_close(forked.images, branches.images, rtol=2e-3, atol=2e-3)
            torch.testing.assert_close(forked.x_t, branches.x_t, rtol=2e-3, atol=2e-3)


@needs_library
def test_native_programs_give_the_same_bits_in_every_grid() -> None:
    unet, (a, b) = network(), ends()
    native = Sampler(unet, DIFFUSION, "cpu")
    grid = native.interpolate(a, b, [9, 4], LAMBDAS)
    assert torch.equal(native.interpolate(a, b, 4, LAMBDAS), grid[1])
    branches = native.branches(2, [8, 3], 2)
    assert torch.equal(branches.trunk, native.sample(indices=[2])[0])
    assert torch.equal(native.branches(2, 3, 2).images[0], branches.images[1])
