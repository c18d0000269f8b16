"""Langevin dynamics: what the papers say it equals, and what it does to data that are known."""

from __future__ import annotations

import math
from typing import Any

import gaussian_data as gaussian
import pytest
import torch
from torch import Tensor

from fastddpm import GaussianDiffusion, NoiseSchedule, Sampler
from fastddpm.kernels.ancestral_step.reference import STEP_COLUMNS
from fastddpm.sampler import langevin, methods

SHAPE = gaussian.SHAPE
PREDICTIONS = ("epsilon", "sample", "v_prediction", "previous_sample")
VARIANCES = ("fixed_small", "fixed_large", "learned", "learned_range")
SCHEDULE = NoiseSchedule.linear(1000).respace(range(0, 1000, 40))


def bent(x: Tensor, t: Tensor) -> Tensor:
    """A network without an exact answer."""
    return 0.4 * torch.tanh(x) + 1e-3 * t.reshape(-1, 1, 1, 1).to(x.dtype) - 0.2


def drawn(step: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(step))


def at(table: Tensor, t: Tensor) -> Tensor:
    return table[t].reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_score_matching_is_the_weighted_loss_of_epsilon(prediction: str) -> None:
    """‖s - ∇ log q(x_t | x_0)‖² (1-ᾱ_t) = ‖ε̂ - ε‖² (Vincent 2011; Ho et al. 2020, section 3.2), and
    with the bound's weight it is the bound's term."""
    d = GaussianDiffusion(SCHEDULE, prediction, "fixed_large", clip=None)
    t = torch.arange(1, 25)
    x_0, noise = torch.rand(24, *SHAPE).double() - 0.5, torch.randn(24, *SHAPE).double()
    x_t = d.q_sample(x_0, t, noise).requires_grad_()
    mean, variance, _ = d.q_mean_variance(x_0, t)
    log_q = -0.5 * ((x_t - mean) ** 2 / variance).sum()
    (of_data,) = torch.autograd.grad(log_q, x_t)
    x_t = x_t.detach()
    output = bent(x_t, d.model_timesteps(t))
    matching = (d.score(output, x_t, t) - of_data).square().mean((1, 2, 3))
    predicted = d.p_mean_variance(output, x_t, t)
    of_epsilon = (predicted.epsilon - noise).square().mean((1, 2, 3))
    noise_variance = (1 - SCHEDULE.alphas_cumprod)[t]
    torch.testing.assert_close(noise_variance * matching, of_epsilon, rtol=1e-9, atol=1e-12)
    if prediction == "epsilon":
        loss = d.training_losses(bent, x_0, t, noise)["loss"]
        torch.testing.assert_close(noise_variance * matching, loss, rtol=1e-9, atol=1e-12)
    # What is left of the term comes of the two variances, whatever the network says.
    rest = d.vb_term(d.target(x_0, x_t, t, noise), x_0, x_t, t, clip=False)
    term = d.vb_term(output, x_0, x_t, t, clip=False) - rest
    weight = (d.kl_weight_epsilon * (1 - SCHEDULE.alphas_cumprod))[t] / math.log(2)
    torch.testing.assert_close(term, weight * matching, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_an_ancestral_step_is_a_langevin_step_of_these_coefficients(
    prediction: str, variance: str
) -> None:
    """x_{t-1} = (x_t + β_t s)/√α_t + σ_t z."""
    d = GaussianDiffusion(SCHEDULE, prediction, variance, clip=None)
    t = torch.arange(25)
    x_t, z = torch.randn(25, *SHAPE).double(), torch.randn(25, *SHAPE).double()
    output = bent(x_t, d.model_timesteps(t))
    beta, sigma = at(SCHEDULE.betas, t), at(d.coefficients["sigma"], t)
    step = (x_t + beta * d.score(output, x_t, t)) / (1 - beta).sqrt() + sigma * z
    torch.testing.assert_close(d.p_step(output, x_t, t, z), step, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("clip", [None, 0.9])
def test_a_chain_is_the_loop_of_its_steps(
    prediction: str, variance: str, clip: float | None
) -> None:
    d = GaussianDiffusion(SCHEDULE, prediction, variance, clip=clip)

    def network(x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([bent(x, t), torch.tanh(x) - 2], 1) if d.learns_variance else bent(x, t)

    sampler = Sampler(network, d, "reference", shape=SHAPE)
    how: dict[str, Any] = {"method": "langevin", "corrections": 2, "step_size": 0.3}
    found = sampler.sample(2, noise=drawn, **how)
    asked = iter(range(75, -1, -1))
    x = drawn(next(asked), (2, *SHAPE)).double()
    for k in range(24, -1, -1):
        t = torch.full((2,), k)
        a, size = SCHEDULE.alphas_cumprod[k], 0.3 * SCHEDULE.betas[k]
        for _ in range(2):
            x_0 = d.p_mean_variance(network(x, d.model_timesteps(t)), x, t).x_0
            score = (a.sqrt() * x_0 - x) / (1 - a)
            x = x + size * score + (2 * size).sqrt() * drawn(next(asked), (2, *SHAPE))
        output = network(x, d.model_timesteps(t))
        if prediction == "previous_sample" and clip is not None:
            # The step goes on from the bounded x_0, as the corrections do.
            p = d.p_mean_variance(output, x, t)
            output = torch.cat([d.q_posterior(p.x_0, x, t)[0], output[:, 3:]], 1)
        x = d.p_step(output, x, t, drawn(next(asked), (2, *SHAPE)).double())
    torch.testing.assert_close(found.double(), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("variance", VARIANCES)
def test_without_corrections_it_is_the_ancestral_chain(prediction: str, variance: str) -> None:
    d = GaussianDiffusion(SCHEDULE, prediction, variance)

    def network(x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([bent(x, t), torch.tanh(x) - 2], 1) if d.learns_variance else bent(x, t)

    sampler = Sampler(network, d, "reference", shape=SHAPE)
    for options in ({}, {"on_x_0": torch.tanh}, {"steps": 7}):
        found = sampler.sample(2, method="langevin", corrections=0, **options)
        assert torch.equal(found, sampler.sample(2, **options))


def test_every_row_has_noise_of_its_own() -> None:
    d = GaussianDiffusion(NoiseSchedule.linear(1000))
    one, three = (langevin.langevin(d, None, k, 0.5).counters for k in (1, 3))
    assert len(set(three.tolist())) == 4000 and int(three.max()) < 1 << 24
    # That of the ancestral chain at its steps, and of a chain with fewer corrections at those.
    assert torch.equal(three[::4], d.schedule.timesteps)
    assert torch.equal(three[1::4], one[1::2])
    most = langevin.langevin(d, None, 255, 0.5).counters
    assert len(set(most.tolist())) == 256_000 and int(most.max()) < 1 << 24


def errors_of_marginals(corrections: int) -> list[float]:
    """The relative error of the variance of x_t, here and there in the chain, and of the mean."""
    sampler = Sampler(gaussian.network, gaussian.DIFFUSION, shape=SHAPE)
    levels = torch.cat([torch.ones(1).double(), gaussian.DIFFUSION.schedule.alphas_cumprod])
    how: dict[str, Any] = {"method": "langevin", "corrections": corrections}
    errors = []
    for moment in sampler.stream(2000, 1, every=101, **how):
        k, number = divmod(moment.t, corrections + 1)
        a = levels[k + 1 if number else k]
        mean, variance = a.sqrt() * gaussian.MEAN, gaussian.spread(a) ** 2
        x = moment.x_t.double()
        errors += [
            float((x - mean).square().mean() / variance) - 1,
            float((x.mean() - mean) / variance.sqrt()),
        ]
    return errors


def test_gaussian_data_keep_their_marginals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 96,000 numbers: four standard errors of the variance are 1.8 %, and the steps' own error
    is below 1.2 % (both bounds of σ, in closed form below)."""
    errors = errors_of_marginals(1)
    assert len(errors) == 40
    assert max(map(abs, errors)) < 0.03
    right = langevin._corrections

    def weak(diffusion: GaussianDiffusion, step_size: float) -> Tensor:
        """The noise of another convention, √η z."""
        rows = right(diffusion, step_size)
        rows[:, STEP_COLUMNS.index("sigma")] /= math.sqrt(2)
        return rows

    monkeypatch.setattr(langevin, "_corrections", weak)
    assert max(map(abs, errors_of_marginals(1))) > 0.2


def variance_errors(method: methods.Method, diffusion: GaussianDiffusion) -> list[float]:
    """Relative, of each x_t of the chain of the best network for Gaussian data, in closed form."""
    levels = torch.cat([torch.ones(1).double(), diffusion.schedule.alphas_cumprod])
    found, errors = torch.ones(()).double(), []
    for i in range(method.num_steps - 1, -1, -1):
        k, number = divmod(i, method.rows_per_level)
        now, then = levels[k + 1], levels[k + 1 if number else k]
        row = dict(zip(STEP_COLUMNS, method.rows[i], strict=True))
        of_x_0 = now.sqrt() * gaussian.VARIANCE / gaussian.spread(now) ** 2
        kept = row["mean_from_x0"] * of_x_0 + row["mean_from_x"]
        found = kept**2 * found + row["sigma"] ** 2
        errors.append(float(found / gaussian.spread(then) ** 2) - 1)
    return errors


def test_corrections_mend_what_long_strides_do_to_the_variance() -> None:
    whole = gaussian.DIFFUSION
    for corrections, size in ((1, 0.5), (4, 0.5), (4, 1.0)):
        method = langevin.langevin(whole, None, corrections, size)
        assert max(map(abs, variance_errors(method, whole))) < 0.012
    short = whole.respace(torch.linspace(0, 999, 25).round().long())
    of_images = [
        abs(variance_errors(langevin.langevin(short, None, k, 0.5), short)[-1])
        for k in (0, 1, 4, 16)
    ]
    assert of_images == sorted(of_images, reverse=True)
    assert of_images[0] > 0.3 and of_images[-1] < 0.1


def test_img2img_begins_at_its_level() -> None:
    """With all of the level's corrections."""
    d = GaussianDiffusion(SCHEDULE)
    sampler = Sampler(bent, d, "reference", shape=SHAPE)
    images, how = torch.rand(2, *SHAPE) - 0.5, {"method": "langevin", "corrections": 3}
    z = drawn(0, (2, *SHAPE))
    x_t = d.q_sample(images, torch.full((2,), 5), z)
    found = sampler.img2img(images, 5, noise=lambda *_: z, **how)
    expected = sampler.sample(2, noise=lambda *_: z, x_T=x_t, steps=range(6), **how)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_more_than_the_counter_has_words_for_is_refused() -> None:
    d = GaussianDiffusion(SCHEDULE)
    with pytest.raises(ValueError, match=r"at most 255 corrections .* got 256"):
        Sampler(bent, d, "reference", shape=SHAPE).sample(1, method="langevin", corrections=256)
    long = GaussianDiffusion(NoiseSchedule.linear(65537, 1e-6, 1e-4))
    with pytest.raises(ValueError, match="timesteps below 65536, got 1 and timesteps up to 65536"):
        langevin.langevin(long, None, 1, 0.5)
