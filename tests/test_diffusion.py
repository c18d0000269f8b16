"""GaussianDiffusion against direct Gaussian KLs, closed forms for Gaussian data, and diffusers."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from fastddpm import timesteps
from fastddpm.diffusion import LOSSES, PREDICTIONS, VARIANCES, GaussianDiffusion
from fastddpm.kernels.ancestral_step.reference import STEP_COLUMNS
from fastddpm.schedule import NoiseSchedule

FIXED = ("fixed_small", "fixed_large")
EVERY_KIND = [(p, v) for p in PREDICTIONS for v in VARIANCES]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def output_like(d: GaussianDiffusion, x: Tensor, seed: int = 9) -> Tensor:
    channels = x.shape[1] * (2 if d.learns_variance else 1)
    return 0.7 * random(len(x), channels, *x.shape[2:], seed=seed, dtype=x.dtype)


# ---- the forward process


def test_q_sample_is_the_chain_of_single_steps_in_law() -> None:
    """Mean and variance of T one-step transitions, composed, are those of q(x_t | x_0)."""
    s = NoiseSchedule.cosine(20)
    d = GaussianDiffusion(s)
    mean, variance = torch.tensor(0.8, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
    x_0 = mean.reshape(1, 1)
    for t in range(20):
        mean, variance = mean * s.alphas[t].sqrt(), variance * s.alphas[t] + s.betas[t]
        index = torch.tensor([t])
        q_mean, q_variance, q_log_variance = d.q_mean_variance(x_0, index)
        assert q_mean.item() == pytest.approx(mean.item(), rel=1e-12)
        assert q_variance.item() == pytest.approx(variance.item(), rel=1e-12)
        assert q_log_variance.item() == pytest.approx(math.log(variance), rel=1e-10)
        z = torch.full((1, 1), 1.7, dtype=torch.float64)
        expected = mean + variance.sqrt() * 1.7
        assert d.q_sample(x_0, index, z).item() == pytest.approx(expected.item(), rel=1e-12)


def test_posterior_is_the_normalised_product_on_a_grid() -> None:
    """q(x_{t-1} | x_t, x_0) by summing q(x_t | x_{t-1}) q(x_{t-1} | x_0) over x_{t-1}."""
    s = NoiseSchedule.linear(10, 0.05, 0.3)
    x_0, x_t = torch.tensor([[[0.4]], [[-0.9]]], dtype=torch.float64)
    grid = torch.linspace(-12, 12, 100_001, dtype=torch.float64)
    for t in range(1, 10):
        before = Normal(s.sqrt_alphas_cumprod[t - 1] * 0.4, (1 - s.alphas_cumprod[t - 1]).sqrt())
        step = Normal(s.alphas[t].sqrt() * grid, s.betas[t].sqrt())
        weight = (before.log_prob(grid) + step.log_prob(x_t[0])).exp()
        weight /= weight.sum()
        mean = (weight * grid).sum()
        variance = (weight * (grid - mean) ** 2).sum()
        actual = GaussianDiffusion(s).q_posterior(x_0, x_t, torch.tensor([t]))
        for value, expected in zip(actual, (mean, variance, variance.log()), strict=True):
            assert value.item() == pytest.approx(expected.item(), rel=1e-9)


# ---- what the output means


@pytest.mark.parametrize(("prediction", "variance"), EVERY_KIND)
def test_the_right_output_gives_x_0_and_the_true_posterior(prediction: str, variance: str) -> None:
    d = GaussianDiffusion(NoiseSchedule.linear(50, 0.001, 0.2), prediction, variance, clip=None)
    x_0, noise, t = random(50, 2, 3), random(50, 2, 3, seed=1), torch.arange(50)
    x_t = d.q_sample(x_0, t, noise)
    output = d.target(x_0, x_t, t, noise)
    if d.learns_variance:
        output = torch.cat([output, torch.zeros_like(output)], dim=1)
    p = d.p_mean_variance(output, x_t, t)
    posterior = d.q_posterior(x_0, x_t, t)
    torch.testing.assert_close(p.x_0, x_0, rtol=0, atol=1e-8)
    torch.testing.assert_close(p.epsilon, noise, rtol=0, atol=1e-8)
    torch.testing.assert_close(p.mean, posterior[0], rtol=0, atol=1e-8)
    # zeros as learned values: variance 1, or the geometric mean of the bounds
    expected = {
        "fixed_small": posterior[2],
        "fixed_large": d.schedule.betas.log()[:, None, None],
        "learned": torch.zeros(50, 1, 1).double(),
        "learned_range": (posterior[2] + d.schedule.betas.log()[:, None, None]) / 2,
    }[variance]
    torch.testing.assert_close(
        p.log_variance[1:], expected.expand(50, 2, 3)[1:], rtol=1e-10, atol=0
    )
    torch.testing.assert_close(p.variance[1:], p.log_variance.exp()[1:], rtol=1e-10, atol=0)


def test_variances_at_the_first_index() -> None:
    s = NoiseSchedule.linear()
    x, t = random(1, 1), torch.tensor([0])
    second = s.posterior_variance[1].item()
    for variance, expected in (("fixed_small", 0.0), ("fixed_large", second)):
        p = GaussianDiffusion(s, variance=variance).p_mean_variance(x, x, t)
        assert p.variance.item() == pytest.approx(expected)
        assert p.log_variance.item() == pytest.approx(math.log(second))
    quirk = GaussianDiffusion(s, variance="fixed_large", last_step_noise="diffusers")
    assert quirk.p_mean_variance(x, x, t).variance.item() == pytest.approx(1e-4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_clipping_moves_epsilon_with_x_0(prediction: str) -> None:
    d = GaussianDiffusion(NoiseSchedule.linear(50, 0.001, 0.2), prediction, clip=0.5)
    x_t, t = random(50, 3, 2), torch.arange(50)
    p = d.p_mean_variance(output_like(d, x_t), x_t, t)
    assert p.x_0.abs().max() == 0.5
    again = d.q_sample(p.x_0, t, p.epsilon)
    torch.testing.assert_close(again, x_t, rtol=0, atol=1e-10)


# ---- the step table


@pytest.mark.parametrize(("prediction", "variance"), EVERY_KIND)
@pytest.mark.parametrize("clip", [1.0, None])
@pytest.mark.parametrize("last_step_noise", ["none", "diffusers"])
def test_step_table_and_methods_agree(
    prediction: str, variance: str, clip: float | None, last_step_noise: str
) -> None:
    s = NoiseSchedule.linear(60, 0.001, 0.2).respace(timesteps.trailing(60, 12))
    d = GaussianDiffusion(
        s, prediction, variance, clip, last_step_noise=last_step_noise, timestep_scale=2.5
    )
    t = torch.arange(12)
    x, z = random(12, 2, 3, 4), random(12, 2, 3, 4, seed=1)
    output = output_like(d, x)
    table = d.step_table()
    assert table.dtype == torch.float64 and table.shape == (12, len(STEP_COLUMNS))
    row = {
        name: column.reshape(-1, 1, 1, 1)
        for name, column in zip(STEP_COLUMNS, table.unbind(1), strict=True)
    }
    mean_half, values = (output[:, :2], output[:, 2:])
    x_0 = row["x0_from_x"] * x + row["x0_from_output"] * mean_half
    x_0 = x_0 if clip is None else x_0.clamp(-clip, clip)
    mean = row["mean_from_x0"] * x_0 + row["mean_from_x"] * x + row["mean_from_output"] * mean_half
    sigma = row["sigma"]
    if d.learns_variance:
        log_variance = values
        if variance == "learned_range":
            f = (values + 1) / 2
            log_variance = f * row["log_variance_max"] + (1 - f) * row["log_variance_min"]
        assert (sigma == 0).all()
        sigma = row["noise_gate"] * (log_variance / 2).exp()
    p = d.p_mean_variance(output, x, t)
    torch.testing.assert_close(p.x_0, x_0, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(p.mean, mean, rtol=1e-12, atol=1e-12)
    step = d.p_step(output, x, t, z)
    torch.testing.assert_close(step, mean + sigma * z, rtol=1e-12, atol=1e-12)
    noisy_end = last_step_noise == "diffusers"
    assert (row["noise_gate"][0] == 0) != noisy_end
    assert torch.equal(step[0], p.mean[0]) != noisy_end
    assert not torch.equal(step[1], p.mean[1])
    assert row["timestep"].flatten().tolist() == [2.5 * t for t in s.timesteps.tolist()]
    torch.testing.assert_close(d.model_timesteps(t), (s.timesteps * 2.5).float())


def test_the_network_gets_original_timesteps() -> None:
    d = GaussianDiffusion(NoiseSchedule.linear().respace([3, 500, 999]))
    seen = d.model_timesteps(torch.tensor([2, 0]))
    assert seen.dtype == torch.int64 and seen.tolist() == [999, 3]


def test_respace_keeps_the_settings() -> None:
    d = GaussianDiffusion(NoiseSchedule.linear(), "sample", "fixed_large", 2.0, timestep_scale=3.0)
    short = d.respace([0, 999])
    assert (short.prediction, short.variance, short.clip) == ("sample", "fixed_large", 2.0)
    assert short.num_steps == 2 and short.timestep_scale == 3.0
    assert short.step_table().shape == (2, 10)


# ---- the bound


@pytest.mark.parametrize("variance", FIXED)
@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
def test_kl_weights_are_a_direct_gaussian_kl(prediction: str, variance: str) -> None:
    """KL(q(x_{t-1}|x_t,x_0) ‖ p) = weight × squared error + the KL of the two variances alone."""
    s = NoiseSchedule.linear(200, 5e-4, 0.1)
    d = GaussianDiffusion(s, prediction, variance, clip=None)
    t = torch.arange(1, 200)
    x_0, noise, error = random(3, 199, 2).unbind(0)
    x_t = d.q_sample(x_0, t, noise)
    p = d.p_mean_variance(d.target(x_0, x_t, t, noise) + error, x_t, t)
    mean, q_variance, _ = d.q_posterior(x_0, x_t, t)
    p_variance = (s.posterior_variance if variance == "fixed_small" else s.betas)[t, None]
    direct = kl_divergence(Normal(mean, q_variance.sqrt()), Normal(p.mean, p_variance.sqrt()))
    ratio = q_variance / p_variance
    variances_alone = 0.5 * (ratio - 1 - ratio.log())
    weight = d.kl_weight_epsilon if prediction == "epsilon" else d.kl_weight_x0
    torch.testing.assert_close(
        direct, weight[t, None] * error**2 + variances_alone, rtol=1e-7, atol=1e-11
    )


def test_kl_weights_in_the_seeds_forms() -> None:
    """Design I: ½ (SNR_{t-1} - SNR_t).  Design II: β²/(2 σ² α (1-ᾱ))."""
    s = NoiseSchedule.linear(200, 5e-4, 0.1)
    small, large = (GaussianDiffusion(s, variance=v) for v in FIXED)
    design_1 = (s.snr[:-1] - s.snr[1:]) / 2
    torch.testing.assert_close(small.kl_weight_x0[1:], design_1, rtol=1e-8, atol=0)
    for d, sigma_squared in ((small, s.posterior_variance), (large, s.betas)):
        design_2 = s.betas**2 / (2 * sigma_squared * s.alphas * (1 - s.alphas_cumprod))
        torch.testing.assert_close(d.kl_weight_epsilon[1:], design_2[1:], rtol=1e-9, atol=0)
    with pytest.raises(ValueError, match="learned"):
        GaussianDiffusion(s, variance="learned").kl_weight_x0  # noqa: B018


MEAN, STD = 0.05, 0.12


def optimal_x_0(s: NoiseSchedule, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of x_0 given x_t, for data x_0 ~ N(MEAN, STD²)."""
    alpha_bar = s.alphas_cumprod[t].reshape(-1, *[1] * (x_t.ndim - 1))
    marginal = alpha_bar * STD**2 + 1 - alpha_bar
    mean = MEAN + alpha_bar.sqrt() * STD**2 / marginal * (x_t - alpha_bar.sqrt() * MEAN)
    return mean, STD**2 * (1 - alpha_bar) / marginal


def output_for(d: GaussianDiffusion, x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """The output that stands for the estimate x_0 at x_t."""
    s = d.schedule
    shape = (-1, *[1] * (x_t.ndim - 1))
    signal = s.sqrt_alphas_cumprod[t].reshape(shape)
    noise = s.sqrt_one_minus_alphas_cumprod[t].reshape(shape)
    return d.target(x_0, x_t, t, (x_t - signal * x_0) / noise)


def quadrature() -> tuple[Tensor, Tensor, Tensor]:
    """Nodes (z1, z2) and weights, exact for polynomials of degree 5 in two standard normals."""
    node, weight = math.sqrt(3), (1 / 6, 2 / 3, 1 / 6)
    pairs = list(itertools.product(range(3), repeat=2))
    z = torch.tensor([[(i - 1) * node, (j - 1) * node] for i, j in pairs], dtype=torch.float64)
    weights = [weight[i] * weight[j] for i, j in pairs]
    return z[:, 0], z[:, 1], torch.tensor(weights, dtype=torch.float64)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned"])
def test_elbo_is_the_sum_of_its_three_parts(prediction: str, variance: str) -> None:
    """E[-ELBO] = H(x_0) + KL(q(x_T) ‖ N(0, I)) + Σ_t E KL(q(x_{t-1}|x_t) ‖ p(x_{t-1}|x_t)).

    For Gaussian data everything on the right is known: the entropy, the marginal of x_T, and the
    reverse step q(x_{t-1}|x_t), a Gaussian whose mean the optimal network gives, so that only the
    variances differ, and with "learned" nothing does.  The left side is the library's three parts;
    they are quadratic in (x_0, x_t), so quadrature takes the expectation exactly.
    """
    s = NoiseSchedule.linear(25, 0.01, 0.4)
    d = GaussianDiffusion(s, prediction, variance, clip=None)
    z_0, z_t, weight = quadrature()
    x_0 = (MEAN + STD * z_0)[:, None]
    bound = (weight * d.prior_bpd(x_0)).sum() * math.log(2)
    expected = 0.5 * math.log(2 * math.pi * math.e * STD**2)
    marginal = s.alphas_cumprod[-1] * STD**2 + 1 - s.alphas_cumprod[-1]
    at_T = Normal(s.sqrt_alphas_cumprod[-1] * MEAN, marginal.sqrt())
    expected += kl_divergence(at_T, Normal(0.0, 1.0)).item()
    for i in range(25):
        t = torch.full((9,), i)
        x_t = d.q_sample(x_0, t, z_t[:, None])
        best, spread = optimal_x_0(s, x_t, t)
        true_variance = s.posterior_mean_coef1[i] ** 2 * spread + s.posterior_variance[i]
        output = output_for(d, best, x_t, t)
        if variance == "learned":
            output = torch.cat([output, true_variance.log().expand(9, 1)], dim=1)
        p = d.p_mean_variance(output, x_t, t)
        if i:
            part = d.vb_term(output, x_0, x_t, t) * math.log(2)
        else:
            # the continuous decoder: the discretised one has no closed form
            part = -Normal(p.mean, (p.log_variance / 2).exp()).log_prob(x_0)[:, 0]
        bound += (weight * part).sum()
        ratio = true_variance[0, 0] / p.log_variance[0, 0].exp()
        expected += 0.5 * (ratio - 1 - ratio.log()).item()
    assert bound.item() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(("decoder", "atol"), [("tanh", 1e-2), ("erf", 2e-3)])
def test_the_decoder_is_the_density_times_the_bin(decoder: str, atol: float) -> None:
    s = NoiseSchedule.linear(25, 0.01, 0.4)
    d = GaussianDiffusion(s, "sample", "fixed_large")
    # levels of 8-bit images off the edges; σ = .09 spans many bins
    x_0 = (torch.arange(64).double() * 2 + 60)[:, None, None] / 127.5 - 1
    output = x_0 + 0.05 * random(64, 1, 1)
    t = torch.zeros(64, dtype=torch.int64)
    actual = d.vb_term(output, x_0, x_0, t, decoder=decoder) * math.log(2)  # type: ignore[arg-type]
    scale = (s.posterior_log_variance_clipped[0] / 2).exp()
    density = -Normal(output, scale).log_prob(x_0) - math.log(2 / 255)
    torch.testing.assert_close(actual, density.flatten(), rtol=0, atol=atol)


def test_terms_are_means_over_dimensions_in_bits() -> None:
    d = GaussianDiffusion(NoiseSchedule.linear(25, 0.01, 0.4), clip=None)
    x_0, x_t, output = random(3, 4, 2, 3, 5).unbind(0)
    t = torch.tensor([0, 1, 7, 24])
    whole = d.vb_term(output, x_0, x_t, t)
    pixels = [
        d.vb_term(output[:, c, i, j, None], x_0[:, c, i, j, None], x_t[:, c, i, j, None], t)
        for c, i, j in itertools.product(range(2), range(3), range(5))
    ]
    torch.testing.assert_close(whole, torch.stack(pixels).mean(0), rtol=1e-10, atol=0)
    q_mean, q_variance, _ = d.q_mean_variance(x_0, torch.full((4,), 24))
    prior = kl_divergence(Normal(q_mean, q_variance.sqrt()), Normal(0.0, 1.0))
    expected = prior.flatten(1).mean(1) / math.log(2)
    torch.testing.assert_close(d.prior_bpd(x_0), expected, rtol=1e-10, atol=0)


def test_evaluation_clips_and_training_does_not() -> None:
    s = NoiseSchedule.linear(25, 0.01, 0.4)
    d = GaussianDiffusion(s, "sample")
    x_0, x_t, noise = random(3, 4, 2, 3).clamp(-1, 1).unbind(0)
    t = torch.tensor([0, 1, 7, 24])
    far = torch.full_like(x_0, 3.0)
    inside = torch.ones_like(x_0)
    torch.testing.assert_close(d.vb_term(far, x_0, x_t, t), d.vb_term(inside, x_0, x_t, t))
    free = dataclasses.replace(d, clip=None).vb_term(far, x_0, x_t, t)
    torch.testing.assert_close(d.vb_term(far, x_0, x_t, t, clip=False), free)
    assert (free > d.vb_term(far, x_0, x_t, t))[1:].all()
    x_t = d.q_sample(x_0, t, noise)
    loss = d.training_losses(lambda x, t: far, x_0, t, noise, "vlb")["loss"]
    torch.testing.assert_close(loss, d.vb_term(far, x_0, x_t, t, clip=False))


# ---- the score


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_score_is_the_gradient_of_log_q(prediction: str) -> None:
    """For x_0 ~ N(m, s²), q(x_t) is Gaussian and the optimal network's score is its gradient."""
    s = NoiseSchedule.cosine(30)
    d = GaussianDiffusion(s, prediction)
    t = torch.arange(29)
    x_t = random(29, 4).requires_grad_()
    alpha_bar = s.alphas_cumprod[t, None]
    q = Normal(alpha_bar.sqrt() * MEAN, (alpha_bar * STD**2 + 1 - alpha_bar).sqrt())
    (gradient,) = torch.autograd.grad(q.log_prob(x_t).sum(), x_t)
    x_t = x_t.detach()
    output = output_for(d, optimal_x_0(s, x_t, t)[0], x_t, t)
    torch.testing.assert_close(d.score(output, x_t, t), gradient, rtol=1e-8, atol=1e-8)


def test_the_step_is_annealed_langevin_dynamics() -> None:
    d = GaussianDiffusion(NoiseSchedule.linear(30, 0.01, 0.3), clip=None)
    s, t = d.schedule, torch.arange(1, 30)
    x_t, output, z = random(3, 29, 4).unbind(0)
    langevin = (x_t + s.betas[t, None] * d.score(output, x_t, t)) / s.alphas[t, None].sqrt()
    langevin += s.posterior_variance[t, None].sqrt() * z
    torch.testing.assert_close(d.p_step(output, x_t, t, z), langevin, rtol=1e-10, atol=1e-10)


def test_the_exact_chain_samples_the_data() -> None:
    """Ancestral sampling is affine for Gaussian data: mean and variance return to the data's."""
    s = NoiseSchedule.linear(400, 1e-4, 0.05)
    d = GaussianDiffusion(s, "sample", "learned", clip=None)
    # the affine map of each step, read off at three points
    points = torch.tensor([0.0, 1.0, 0.0]).double()[:, None]
    z = torch.tensor([0.0, 0.0, 1.0]).double()[:, None]
    mean, variance = 0.0, 1.0
    for i in reversed(range(400)):
        t = torch.full((3,), i)
        best, spread = optimal_x_0(s, points, t)
        log_variance = (s.posterior_mean_coef1[i] ** 2 * spread + s.posterior_variance[i]).log()
        step = d.p_step(torch.cat([best, log_variance.expand(3, 1)], 1), points, t, z)
        shift, slope, sigma = step[0].item(), (step[1] - step[0]).item(), (step[2] - step[0]).item()
        mean, variance = shift + slope * mean, slope**2 * variance + sigma**2
    # the last step adds no noise: its mean carries all but Var(x_0 | x_1) ≈ 1e-4
    assert mean == pytest.approx(MEAN, abs=1e-4)
    assert variance == pytest.approx(STD**2 - 1e-4, abs=1e-5)


# ---- training losses


@pytest.mark.parametrize(("prediction", "variance"), EVERY_KIND)
def test_mse_is_zero_at_the_target_and_one_a_unit_off(prediction: str, variance: str) -> None:
    d = GaussianDiffusion(NoiseSchedule.cosine(40).respace(range(0, 40, 2)), prediction, variance)
    x_0, noise = random(2, 6, 3, 4, 4).unbind(0)
    t = torch.tensor([0, 1, 5, 10, 18, 19])
    seen = []

    def model(off: float) -> Callable[[Tensor, Tensor], Tensor]:
        def call(x_t: Tensor, steps: Tensor) -> Tensor:
            seen.append(steps)
            output = d.target(x_0, x_t, t, noise) + off
            return torch.cat([output, 0 * output], 1) if d.learns_variance else output

        return call

    assert d.training_losses(model(0.0), x_0, t, noise)["loss"].abs().max() < 1e-20
    losses = d.training_losses(model(1.0), x_0, t, noise)
    torch.testing.assert_close(losses["loss"], torch.ones(6).double())
    assert losses.keys() == {"loss", "mse"}
    assert seen[0].tolist() == (2 * t).tolist()


def test_v_is_the_derivative_along_the_circle() -> None:
    """x_t = cos φ x_0 + sin φ ε and v = dx_t/dφ (Salimans & Ho 2022)."""
    d = GaussianDiffusion(NoiseSchedule.cosine(40), "v_prediction")
    x_0, noise, t = random(4, 3), random(4, 3, seed=1), torch.tensor([0, 10, 20, 39])
    angle = d.schedule.sqrt_alphas_cumprod[t, None].acos()
    _, v = torch.autograd.functional.jvp(
        lambda a: a.cos() * x_0 + a.sin() * noise, angle, torch.ones_like(angle)
    )
    torch.testing.assert_close(d.target(x_0, x_0, t, noise), v, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("variance", ["learned", "learned_range"])
def test_hybrid_trains_the_mean_by_mse_and_the_variance_by_the_bound(variance: str) -> None:
    d = GaussianDiffusion(NoiseSchedule.linear(500, 2e-4, 0.04), variance=variance)
    x_0, noise, t = random(5, 2, 3), random(5, 2, 3, seed=1), torch.tensor([0, 1, 9, 200, 499])
    output = output_like(d, x_0).requires_grad_()

    def gradient(kind: str) -> Tensor:
        losses = d.training_losses(lambda x, t: output, x_0, t, noise, kind)  # type: ignore[arg-type]
        assert losses["loss"].shape == (5,)
        return torch.autograd.grad(losses["loss"].sum(), output)[0]

    simple, hybrid, vlb = gradient("simple"), gradient("hybrid"), gradient("vlb")
    assert (simple[:, 2:] == 0).all()
    torch.testing.assert_close(hybrid[:, :2], simple[:, :2])
    torch.testing.assert_close(hybrid[:, 2:], 0.5 * vlb[:, 2:])
    torch.testing.assert_close(gradient("rescaled_vlb"), 500 * vlb)
    losses = d.training_losses(lambda x, t: output, x_0, t, noise, "hybrid", vlb_weight=3.0)
    torch.testing.assert_close(losses["loss"], losses["mse"] + 3 * losses["vb"])


def test_a_fixed_variance_leaves_the_bound_out_of_the_hybrid_loss() -> None:
    d = GaussianDiffusion(NoiseSchedule.linear())
    x_0, noise, t = random(2, 2, 3), random(2, 2, 3, seed=1), torch.tensor([0, 500])
    losses = d.training_losses(lambda x, t: 0 * x, x_0, t, noise, "hybrid")
    assert losses.keys() == {"loss", "mse"}


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_min_snr_is_the_capped_weight_of_the_x_0_error(prediction: str) -> None:
    d = GaussianDiffusion(NoiseSchedule.cosine(40), prediction, clip=None)
    x_0, noise, error, t = *random(3, 40, 2).unbind(0), torch.arange(40)
    x_t = d.q_sample(x_0, t, noise)
    output = d.target(x_0, x_t, t, noise) + error
    loss = d.training_losses(lambda x, t: output, x_0, t, noise, "min_snr")["loss"]
    x_0_error = ((d.p_mean_variance(output, x_t, t).x_0 - x_0) ** 2).mean(1)
    expected = d.schedule.snr.clamp(max=5) * x_0_error
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-10)


# ---- diffusers


@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_steps_equal_diffusers_with_its_last_step(
    prediction: str, variance: str, spacing: str
) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(
        1000, prediction_type=prediction, variance_type=variance, timestep_spacing=spacing
    )
    scheduler.set_timesteps(50)
    d = GaussianDiffusion(
        NoiseSchedule.linear().respace(timesteps.spaced(spacing, 1000, 50)),
        prediction,
        variance,
        last_step_noise="diffusers",
    )
    ours_by_default = dataclasses.replace(d, last_step_noise="none")
    x = random(1, 3, 4, 4, dtype=torch.float32)
    output = output_like(d, x)
    for step in (0, 1, 25, 49):
        t = torch.tensor([step])
        generator = torch.Generator().manual_seed(step)
        noise = torch.randn(x.shape, generator=generator)
        expected = scheduler.step(
            output, int(d.model_timesteps(t)), x, generator=generator.manual_seed(step)
        )
        # diffusers computes its tables in float32
        torch.testing.assert_close(
            d.p_step(output, x, t, noise), expected.prev_sample, rtol=0, atol=2e-4
        )
        torch.testing.assert_close(
            d.p_mean_variance(output, x, t).x_0, expected.pred_original_sample, rtol=0, atol=2e-4
        )
        if step:
            same = ours_by_default.p_step(output, x, t, noise)
            torch.testing.assert_close(same, d.p_step(output, x, t, noise), rtol=0, atol=0)
    noise = torch.ones_like(x)
    t = torch.tensor([0])
    added = d.p_step(output, x, t, noise) - ours_by_default.p_step(output, x, t, noise)
    if spacing == "trailing" and variance == "fixed_large":
        # the noise that diffusers leaves in the last of 50 trailing steps
        torch.testing.assert_close(added, torch.full_like(added, 0.0760), rtol=0, atol=1e-4)
    elif spacing == "leading":
        assert (added == 0).all()


# ---- edges


def test_no_signal_at_the_end() -> None:
    """jsd and zero-terminal-SNR end with ᾱ = 0."""
    rescaled = NoiseSchedule.linear().rescale_zero_terminal_snr()
    for s in (NoiseSchedule.jsd(10), rescaled):
        t = torch.tensor([0, len(s) - 2, len(s) - 1])
        x, output = random(2, 3, 2, 4).unbind(0)
        for prediction in ("sample", "v_prediction"):
            d = GaussianDiffusion(s, prediction)
            assert d.step_table().isfinite().all()
            for value in (*d.p_mean_variance(output, x, t), d.score(output, x, t)):
                assert value.isfinite().all()
        d = GaussianDiffusion(s)
        assert d.q_sample(x, t, output).isfinite().all()
        assert d.training_losses(lambda a, b: output, x, t, x)["loss"].isfinite().all()  # noqa: B023
        for refused in (d.step_table, lambda: d.p_mean_variance(output, x, t)):  # noqa: B023
            with pytest.raises(ValueError, match="alphas_cumprod = 0"):
                refused()


@settings(deadline=None, max_examples=50)
@given(
    st.sampled_from(EVERY_KIND),
    st.integers(1, 12),
    st.sampled_from([(3,), (2, 5), (2, 3, 4)]),
    st.integers(0, 3),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_any_chain_shape_and_precision(
    kind: tuple[str, str], T: int, size: tuple[int, ...], batch: int, dtype: torch.dtype
) -> None:
    d = GaussianDiffusion(NoiseSchedule.linear(T, 0.01, 0.3), *kind)
    x = random(batch, 3, *size, dtype=dtype)
    t = torch.arange(batch) % T
    output = output_like(d, x)
    results = [*d.p_mean_variance(output, x, t), d.p_step(output, x, t, x), d.score(output, x, t)]
    results += [*d.q_mean_variance(x, t), *d.q_posterior(x, x, t), d.q_sample(x, t, x)]
    for result in results:
        assert result.shape == x.shape and result.dtype == dtype and result.isfinite().all()
    for loss in LOSSES[:-1]:
        losses = d.training_losses(lambda a, b: output, x, t, x, loss)  # type: ignore[arg-type]
        assert losses["loss"].shape == (batch,) and losses["loss"].isfinite().all()


def test_half_precision_inputs_meet_float32_tables() -> None:
    d = GaussianDiffusion(NoiseSchedule.linear())
    x, t = random(2, 3, 4, dtype=torch.float32).bfloat16(), torch.tensor([0, 999])
    assert d.q_sample(x, t, x).dtype == torch.float32
    torch.testing.assert_close(d.q_sample(x, t, x), d.q_sample(x.float(), t, x.float()))


def test_no_value_is_read_on_the_host() -> None:
    """Meta tensors have no values: any .item() in a step or a loss would raise."""
    for prediction, variance in EVERY_KIND:
        d = GaussianDiffusion(NoiseSchedule.linear(10, 0.01, 0.3), prediction, variance)
        x = torch.empty(4, 3, 8, 8, device="meta")
        t = torch.empty(4, dtype=torch.int64, device="meta")
        output = torch.empty(4, 6 if d.learns_variance else 3, 8, 8, device="meta")
        assert d.p_step(output, x, t, x).shape == x.shape
        for loss in LOSSES[:-1]:
            d.training_losses(lambda a, b: output, x, t, x, loss)  # type: ignore[arg-type]  # noqa: B023


def test_tables_are_rounded_once_and_kept() -> None:
    d = GaussianDiffusion(NoiseSchedule.linear())
    x, t = random(2, 3, dtype=torch.float32), torch.tensor([0, 999])
    d.q_sample(x, t, x)
    kept = dict(d.coefficients._copies)
    d.q_sample(x, t, x)
    assert kept and all(d.coefficients._copies[key] is table for key, table in kept.items())


# ---- mistakes


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"prediction": "eps"}, "epsilon, sample, v_prediction, previous_sample, got 'eps'"),
        ({"variance": "fixed"}, "fixed_small, fixed_large, learned, learned_range"),
        ({"clip": 0.0}, "clip above 0"),
        ({"last_step_noise": "some"}, "none, diffusers"),
        ({"timestep_scale": -1.0}, "timestep_scale above 0"),
    ],
)
def test_wrong_settings_are_refused(settings_: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GaussianDiffusion(NoiseSchedule.linear(), **settings_)  # type: ignore[arg-type]


X, T2 = torch.zeros(2, 3, 4, 4), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: d.q_sample(X, torch.tensor([0, 1000]), X), r"\[0, 1000\), got 0 to 1000"),
        (lambda d: d.q_sample(X, torch.tensor([-1, 0]), X), "got -1 to 0"),
        (lambda d: d.q_sample(X, torch.tensor([0]), X), r"int64 \[2\], got torch.int64 \[1\]"),
        (lambda d: d.q_sample(X, T2.int(), X), "torch.int32"),
        (lambda d: d.q_sample(X, T2, X[:1]), "noise of shape"),
        (lambda d: d.q_sample(X.long(), T2, X), "floating point"),
        (lambda d: d.q_posterior(X[:1], X, T2), "x_0 of shape"),
        (lambda d: d.p_mean_variance(torch.zeros(2, 6, 4, 4), X, T2), r"\[2, 3, 4, 4\]"),
        (lambda d: d.p_step(X, X, T2, X[:, :1]), "noise of shape"),
        (lambda d: d.training_losses(lambda x, t: x, X, T2, X, "l1"), "simple, vlb"),
        (lambda d: d.vb_term(X, X, X, T2, decoder="logistic"), "tanh, erf"),
        (
            lambda d: dataclasses.replace(d, variance="learned").p_mean_variance(X, X, T2),
            r"\[2, 6, 4, 4\]",
        ),
        (
            lambda d: dataclasses.replace(d, prediction="previous_sample").min_snr_weight(),
            "previous_sample",
        ),
    ],
)
def test_wrong_calls_say_what_was_expected(
    call: Callable[[GaussianDiffusion], object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        call(GaussianDiffusion(NoiseSchedule.linear()))
