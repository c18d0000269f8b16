"""Inpainting: the walk of the paper, its steps and jumps as rows, and what it draws."""

from __future__ import annotations

import math

import pytest
import torch
from sampler_engines import FAST, running
from torch import Tensor
from unet_networks import network

from fastddpm import GaussianDiffusion, NoiseSchedule, Sampler
from fastddpm.kernels.ancestral_step.reference import STEP_COLUMNS
from fastddpm.sampler.methods import ancestral
from fastddpm.sampler.repaint import repaint, walk, walk_length

SHAPE = (3, 4, 4)
SCHEDULE = NoiseSchedule.linear(20, 0.01, 0.3)


def papers_levels(T: int, j: int, r: int) -> list[int]:
    """Lugmayr et al. 2022, appendix: the levels, one step down or up at a time."""
    jumps = {level: r - 1 for level in range(0, T - j, j)}
    level, visited = T, [T]
    while level >= 1:
        level -= 1
        visited.append(level)
        if jumps.get(level, 0) > 0:
            jumps[level] -= 1
            for _ in range(j):
                level += 1
                visited.append(level)
    return visited


@pytest.mark.parametrize(("T", "j", "r"), [(20, 5, 3), (20, 1, 2), (7, 3, 4), (5, 9, 2), (6, 2, 1)])
def test_the_walk_is_the_papers(T: int, j: int, r: int) -> None:
    """With every way up in one."""
    levels = [T]
    for index, reached in walk(T, j, r):
        assert levels[-1] == index + 1
        levels += [index, *range(index + 1, reached + 1)]
    assert levels == papers_levels(T, j, r)
    assert walk_length(T, j, r) == len(walk(T, j, r))
    assert walk(T, j, 1) == [(k, k) for k in range(T - 1, -1, -1)]


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_a_row_is_a_step_and_the_jump_after_it(variance: str) -> None:
    d = GaussianDiffusion(SCHEDULE, variance=variance)
    method, known = repaint(d, 1.0, 4, 3)
    own = ancestral(d, 1.0).rows
    a = torch.cat([torch.ones(1), SCHEDULE.alphas_cumprod]).double()

    def row(rows: Tensor, k: int) -> dict[str, float]:
        return dict(zip(STEP_COLUMNS, rows[k].tolist(), strict=True))

    steps = walk(20, 4, 3)
    assert method.num_steps == len(steps) == len(set(method.counters.tolist())) > 40
    for n, (index, reached) in enumerate(steps):
        at = len(steps) - 1 - n
        step, found, kept = row(own, index), row(method.rows, at), row(known, at)
        r = math.sqrt(a[reached] / a[index])
        assert found["mean_from_x0"] == pytest.approx(r * step["mean_from_x0"], rel=1e-12)
        assert found["mean_from_x"] == pytest.approx(r * step["mean_from_x"], abs=1e-14)
        spread = r**2 * step["sigma"] ** 2 + 1 - r**2
        assert found["sigma"] ** 2 == pytest.approx(spread, abs=1e-14)
        assert kept["mean_from_x0"] ** 2 == pytest.approx(float(a[reached]))
        assert kept["sigma"] ** 2 == pytest.approx(float(1 - a[reached]), abs=1e-14)
        assert method.timesteps[at] == SCHEDULE.timesteps[index]


def test_what_is_known_is_kept_exactly() -> None:
    d = GaussianDiffusion(SCHEDULE)
    sampler = Sampler(lambda x, t: 0.3 * x, d, "reference", shape=SHAPE)
    images = torch.rand(4, *SHAPE) * 2 - 1
    for known in (torch.rand(4, 4) < 0.5, torch.rand(4, 3, 4, 4) < 0.5, torch.ones(1, 4, 4)):
        found = sampler.inpaint(images, known, jump_length=5, resamplings=2)
        everywhere = torch.as_tensor(known == 1).expand(images.shape)
        assert torch.equal(found[everywhere], images[everywhere])
        if not everywhere.all():
            assert not torch.isclose(found[~everywhere], images[~everywhere]).all()


def test_nothing_known_and_no_jump_is_the_chain() -> None:
    d = GaussianDiffusion(SCHEDULE)
    sampler = Sampler(lambda x, t: 0.3 * x, d, "reference", shape=SHAPE)

    def noise(step: int, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(step))

    found = sampler.inpaint(
        torch.zeros(2, *SHAPE), torch.zeros(1, 4, 4), noise=noise, resamplings=1
    )
    torch.testing.assert_close(found, sampler.sample(2, noise=noise), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("engine", ["reference", *(e for e in FAST if e != "compile")])
def test_what_is_not_known_may_be_nan(engine: str) -> None:
    """And no call leaves anything to the next, not even one that fails."""
    unet, known = network(), torch.arange(64).reshape(8, 8) < 30
    images = torch.rand(2, 3, 8, 8) - 0.5
    holes = torch.where(known, images, math.nan)
    nothing = {"noise": lambda step, shape: torch.full(shape, math.nan)}
    how = {"jump_length": 2, "resamplings": 2, "steps": 5}
    with running(engine, unet, GaussianDiffusion(SCHEDULE)) as sampler:
        clean = sampler.inpaint(images, known, **how)
        assert torch.equal(sampler.inpaint(holes, known, **how), clean)
        assert torch.equal(sampler.inpaint(images, known, **how), clean)
        noise = {"noise": lambda step, shape: torch.ones(shape)}
        before = sampler.inpaint(images, known, **noise, **how)
        with pytest.raises(FloatingPointError):
            sampler.inpaint(images, known, **nothing, **how)
        assert torch.equal(sampler.inpaint(images, known, **noise, **how), before)
        with pytest.raises(ValueError, match="finite where they are known"):
            sampler.inpaint(holes, ~known, **how)


CORRELATION = 0.9
# Of small steps, as the method's own error falls with them.
FINE = NoiseSchedule.linear(100, 0.001, 0.12)


def pair(x: Tensor, t: Tensor) -> Tensor:
    """ε̂ for two pixels of deviation ½ with this correlation."""
    a = FINE.alphas_cumprod[t][:, None, None]
    cov = 0.25 * torch.tensor([[1.0, CORRELATION], [CORRELATION, 1.0]]).double()
    eye = torch.eye(2).double()
    solved = torch.linalg.solve(a * cov + (1 - a) * eye, x.double().flatten(1)[..., None])
    return ((1 - a).sqrt() * solved).reshape(x.shape).float()


def test_resampling_leads_to_the_conditional() -> None:
    """One pixel is known; the other's mean given it is known too. Without going back the two
    are less alike than they should be, which is what the paper resamples for."""
    d = GaussianDiffusion(FINE, clip=None)
    sampler = Sampler(pair, d, "reference", shape=(1, 1, 2))
    images = torch.tensor([0.6, 0.0]).expand(2000, 1, 1, 2).contiguous()
    known = torch.tensor([True, False])
    means = []
    for resamplings in (1, 10):
        found = sampler.inpaint(images, known, jump_length=2, resamplings=resamplings)
        means.append(float(found[..., 1].mean()))
    exact = CORRELATION * 0.6
    assert abs(means[1] - exact) < 0.03
    assert abs(means[0] - exact) > 2 * abs(means[1] - exact)


def test_arguments_that_do_not_fit() -> None:
    sampler = Sampler(lambda x, t: x, GaussianDiffusion(SCHEDULE), "reference", shape=SHAPE)
    images, known = torch.zeros(2, *SHAPE), torch.ones(4, 4)
    with pytest.raises(ValueError, match="ancestral chain"):
        sampler.inpaint(images, known, method="ddim")
    with pytest.raises(ValueError, match="jump_length must be at least 1"):
        sampler.inpaint(images, known, jump_length=0)
    with pytest.raises(ValueError, match="at most 1000000 steps, got 10000000010: 20 with jump_le"):
        sampler.inpaint(images, known, jump_length=10, resamplings=10**9)
    with pytest.raises(ValueError, match="bool, or 0 and 1"):
        sampler.inpaint(images, 0.5 * known)
    with pytest.raises(ValueError, match="must broadcast"):
        sampler.inpaint(images, torch.ones(3, 3))
    with pytest.raises(ValueError, match="0 to 19; got 20"):
        sampler.img2img(images, 20)
