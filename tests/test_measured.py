"""Measurements on Gaussian data, where each has a closed form, and what is made of them."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import gaussian_data as gaussian
import pytest
import torch
from torch import Tensor

from fastddpm import GaussianDiffusion, NoiseSchedule, Sampler
from fastddpm.kernels.ancestral_step.reference import STEP_COLUMNS
from fastddpm.sampler import Measured, optimal_timesteps
from fastddpm.sampler.analytic import with_analytic_variance, x_0_variance
from fastddpm.sampler.methods import ancestral, ddim
from fastddpm.sampler.optimal_steps import bound_terms, cheapest_path

LEVELS = gaussian.DIFFUSION.schedule.alphas_cumprod
# E‖ε̂‖²/D and E‖x̂_0 - x_0‖²/D of the best network.
EXACT = Measured(
    gaussian.DIFFUSION.schedule.timesteps,
    (1 - LEVELS) / gaussian.spread(LEVELS) ** 2,
    (1 - LEVELS) * gaussian.VARIANCE / gaussian.spread(LEVELS) ** 2,
    1,
)


def test_a_measurement_is_the_expectation() -> None:
    steps = range(0, 1000, 111)
    d = gaussian.DIFFUSION.respace(steps)
    sampler = Sampler(gaussian.network, d, "reference", shape=gaussian.SHAPE)
    seen: list[tuple[int, int]] = []
    found = sampler.measure(gaussian.draws(3000), progress=lambda *done: seen.append(done))
    exact = EXACT.at(d.schedule.timesteps)
    # The mean of 144,000 squares: deviation 0.4 %.
    torch.testing.assert_close(found.epsilon_square, exact.epsilon_square, rtol=0.02, atol=0)
    torch.testing.assert_close(found.x_0_error, exact.x_0_error, rtol=0.02, atol=0)
    assert found.images == 3000 and seen[-1] == (10, 10)
    assert found.timesteps.tolist() == list(steps)


def test_the_images_run_in_batches() -> None:
    """With the noise and the label of their own number, so that the split makes no difference."""
    d = gaussian.DIFFUSION.respace([0, 400, 999])
    sizes: list[int] = []

    def network(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        sizes.append(len(x))
        return gaussian.network(x, t) + 0.01 * labels.reshape(-1, 1, 1, 1)

    found = []
    for batch_size, expected in ((None, [64, 64, 2]), (50, [50, 50, 30]), (200, [130])):
        how = {"shape": gaussian.SHAPE, "batch_size": batch_size}
        sampler = Sampler(network, d, "reference", **how)
        sizes.clear()
        found.append(sampler.measure(gaussian.draws(130), labels=range(130)))
        assert sizes == 3 * expected
        assert found[-1].images == 130
    for split in found[:2]:
        exact = {"rtol": 1e-12, "atol": 0}
        torch.testing.assert_close(split.epsilon_square, found[2].epsilon_square, **exact)
        torch.testing.assert_close(split.x_0_error, found[2].x_0_error, **exact)


def test_the_variance_of_x_0_is_the_posteriors() -> None:
    posterior = (1 - LEVELS) * gaussian.VARIANCE / gaussian.spread(LEVELS) ** 2
    torch.testing.assert_close(x_0_variance(gaussian.DIFFUSION, EXACT), posterior)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [5, 50])
def test_a_chain_with_the_analytic_variance_has_the_datas(eta: float, steps: int) -> None:
    """x_t is Gaussian at every step; its variance is followed through the table, in float64. With
    another variance it is not the data's."""
    kept = torch.linspace(0, 999, steps).long()
    d = gaussian.DIFFUSION.respace(kept)
    plain = ddim(d, None, eta) if eta < 1 else ancestral(d, None)
    analytic = with_analytic_variance(d, plain, eta, EXACT)
    a = d.schedule.alphas_cumprod
    found, of_plain = (follow(method.rows, a) for method in (analytic, plain))
    # States 1, ..., before the last step, which adds nothing.
    torch.testing.assert_close(found[1:], gaussian.spread(a)[:-1].flip(0) ** 2)
    assert (of_plain[1:] / found[1:] - 1).abs().max() > (0.2 if steps == 5 else 0.01)


def follow(rows: Tensor, a: Tensor) -> Tensor:
    """The variances of x_T, ..., x_1."""
    column = {name: rows[:, k] for k, name in enumerate(STEP_COLUMNS)}
    # Slope of x̂_0 in x_t.
    slope = a.sqrt() * gaussian.VARIANCE / gaussian.spread(a) ** 2
    variance = gaussian.spread(a[-1]) ** 2
    found = [variance]
    for i in range(len(a) - 1, 0, -1):
        gain = column["mean_from_x0"][i] * slope[i] + column["mean_from_x"][i]
        variance = gain**2 * variance + column["sigma"][i] ** 2
        found.append(variance)
    return torch.stack(found)


def test_noise_of_a_measurement_stays_within_the_bounds() -> None:
    wild = Measured(EXACT.timesteps, torch.full_like(LEVELS, 1.3), EXACT.x_0_error, 1)
    assert (x_0_variance(gaussian.DIFFUSION, wild) == 0).all()
    none = Measured(EXACT.timesteps, torch.zeros_like(LEVELS), EXACT.x_0_error, 1)
    assert (x_0_variance(gaussian.DIFFUSION, none) <= 1).all()


def test_without_a_signal_the_variance_is_that_of_the_data() -> None:
    """The best network tells their mean, 0, and its error is their variance."""
    schedule = NoiseSchedule.linear(100).rescale_zero_terminal_snr()
    d = GaussianDiffusion(schedule, "v_prediction", clip=None)

    def best(x: Tensor, t: Tensor) -> Tensor:
        a = schedule.alphas_cumprod[t].reshape(-1, 1, 1, 1)
        slope = (a * (1 - a)).sqrt() * (1 - gaussian.VARIANCE) / (a * gaussian.VARIANCE + 1 - a)
        return (slope * x).float()

    sampler = Sampler(best, d, "reference", shape=gaussian.SHAPE)
    images = gaussian.VARIANCE**0.5 * torch.randn(
        2000, *gaussian.SHAPE, generator=torch.Generator().manual_seed(2)
    )
    found = [sampler.measure(images, seed).at(schedule.timesteps) for seed in range(2)]
    for measured in found:
        # The mean of 96,000 squares: deviation 0.5 %.
        last = float(x_0_variance(d, measured)[-1])
        assert last == pytest.approx(gaussian.VARIANCE, rel=0.03)
    assert found[0].epsilon_square[-1] != found[1].epsilon_square[-1]
    assert sampler.sample(2, steps=5, spacing="trailing", variance=found[0]).isfinite().all()


def test_the_file(tmp_path: Path) -> None:
    path = tmp_path / "measured.json"
    EXACT.save(path)
    held = Measured.load(path)
    assert torch.equal(held.epsilon_square, EXACT.epsilon_square)
    assert torch.equal(held.x_0_error, EXACT.x_0_error)
    assert torch.equal(held.timesteps, EXACT.timesteps) and held.images == 1
    with pytest.raises(ValueError, match="timestep 1000 was not measured"):
        held.at(torch.tensor([3, 1000]))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1]",
        "{}",
        '{"images": 1, "timesteps": [0], "epsilon_square": [1], "x_0_error": []}',
        '{"images": 1, "timesteps": [0], "epsilon_square": [NaN], "x_0_error": [1]}',
        '{"images": 1, "timesteps": ["a"], "epsilon_square": [1], "x_0_error": [1]}',
        json.dumps({"images": 1, "timesteps": [2**70], "epsilon_square": [1], "x_0_error": [1]}),
    ],
)
def test_another_file_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="holds no measurement"):
        Measured.load(path)


def small(T: int = 9) -> tuple[GaussianDiffusion, Measured]:
    d = GaussianDiffusion(NoiseSchedule.linear(T, 0.05, 0.5))
    a = d.schedule.alphas_cumprod
    error = (1 - a) * 0.25 / (a * 0.25 + 1 - a)
    return d, Measured(d.schedule.timesteps, 1 - a, error, 1)


@pytest.mark.parametrize("variance", ["fixed_small", "analytic"])
@pytest.mark.parametrize("steps", [1, 2, 4, 8, 9])
def test_no_other_steps_have_a_lower_bound(variance: str, steps: int) -> None:
    d, measured = small()
    terms = bound_terms(d, measured, variance)

    def total(kept: tuple[int, ...]) -> float:
        levels = [0, *(k + 1 for k in kept), 9]
        return float(sum(terms[t, s] for s, t in itertools.pairwise(levels)))

    best = min(itertools.combinations(range(8), steps - 1), key=total)
    found = optimal_timesteps(d, measured, steps, variance)
    assert found[-1] == 8 and len(found) == steps
    assert total(tuple(found[:-1])) == pytest.approx(total(best), rel=1e-12)


def test_any_costs_have_a_cheapest_path() -> None:
    terms = torch.rand(8, 8, generator=torch.Generator().manual_seed(3))
    for steps in range(1, 8):

        def total(kept: tuple[int, ...]) -> float:
            return sum(float(terms[t, s]) for s, t in itertools.pairwise([0, *kept, 7]))

        best = min(itertools.combinations(range(1, 7), steps - 1), key=total)
        assert cheapest_path(terms, steps) == [level - 1 for level in (*best, 7)]
    for steps in (0, 8):
        with pytest.raises(ValueError, match="between 1 and T = 7"):
            cheapest_path(terms, steps)


def test_images_beyond_the_bound() -> None:
    """Bytes, or [0, 255] as floats, measured as if they were images: a chain never leads there."""
    bounded = GaussianDiffusion(NoiseSchedule.linear(10), clip=1.0)
    sampler = Sampler(lambda x, t: 0.3 * x, bounded, "reference", shape=(1, 4, 4))
    for value in (255.0, -1.5, math.nan):
        images = torch.zeros(3, 1, 4, 4)
        images[1, 0, 2, 2] = value
        with pytest.raises(ValueError, match=r"images must lie in \[-1, 1\] .* got values up to"):
            sampler.measure(images)
    sampler.measure(torch.full((1, 1, 4, 4), 1.0 + 1e-6))


def test_the_terms_are_the_bounds() -> None:
    """Of the respaced chain, Design I; and the KL of two Gaussians with the best variance."""
    d, measured = small()
    terms, best = (bound_terms(d, measured, v) * math.log(2) for v in ("fixed_small", "analytic"))
    kept = [1, 4, 8]
    respaced = d.respace(kept)
    weights = respaced.kl_weight_x0
    s = respaced.schedule
    for k, (below, level) in enumerate(itertools.pairwise(kept), start=1):
        error = measured.x_0_error[level]
        assert terms[level + 1, below + 1] == pytest.approx(float(weights[k] * error))
        small_variance = s.posterior_variance[k]
        wide = small_variance + s.posterior_mean_coef1[k] ** 2 * error
        # E[(mean - mean')²] is what σ² has more than β̃, so what is left is the logarithm.
        assert best[level + 1, below + 1] == pytest.approx(
            float(0.5 * (wide / small_variance).log())
        )
    assert (best[1:, 1:] <= terms[1:, 1:]).all()
    assert terms.isinf().sum() == 10 * 11 / 2


def test_the_steps_run() -> None:
    d, measured = small()
    sampler = Sampler(lambda x, t: 0.3 * x, d, "reference", shape=(1, 4, 4))
    steps = optimal_timesteps(d, measured, 4)
    assert sampler.sample(2, steps=steps, variance=measured).isfinite().all()
    with pytest.raises(ValueError, match="variance is one of"):
        optimal_timesteps(d, measured, 4, "learned")
