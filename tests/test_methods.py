"""The tables of the methods: against closed forms, diffusers' schedulers, and the exact ODE."""

from __future__ import annotations

from typing import Any

import gaussian_data as gaussian
import pytest
import torch
from torch import Tensor

from fastddpm import GaussianDiffusion, NoiseSchedule, Sampler
from fastddpm.kernels.ancestral_step.reference import STEP_COLUMNS
from fastddpm.sampler import methods
from fastddpm.sampler.ddim import ddim_step
from fastddpm.step_rows import ddim_rows

SHAPE = gaussian.SHAPE
PREDICTIONS = ("epsilon", "sample", "v_prediction", "previous_sample")
SCHEDULE = NoiseSchedule.linear(1000).respace(range(0, 1000, 40))


def column(method: methods.Method, name: str) -> Tensor:
    return method.rows[:, STEP_COLUMNS.index(name)]


def sampler(diffusion: GaussianDiffusion = gaussian.DIFFUSION, model: Any = None) -> Sampler:
    return Sampler(model or gaussian.network, diffusion, "reference", shape=SHAPE)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddim_with_all_noise_is_the_ancestral_step(prediction: str) -> None:
    d = GaussianDiffusion(SCHEDULE, prediction)
    ddim = methods.ddim(d, None, eta=1.0)
    torch.testing.assert_close(column(ddim, "mean_from_x0"), SCHEDULE.posterior_mean_coef1)
    torch.testing.assert_close(column(ddim, "mean_from_x"), SCHEDULE.posterior_mean_coef2)
    torch.testing.assert_close(column(ddim, "sigma"), SCHEDULE.posterior_variance.sqrt())


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_the_schedulers_have_the_same_rows(eta: float) -> None:
    d = GaussianDiffusion(SCHEDULE)
    levels = SCHEDULE.alphas_cumprod, SCHEDULE.alphas_cumprod_prev
    etas = torch.full_like(levels[0], eta)
    rows = ddim_rows(*levels, "epsilon", etas, rederive=True)
    # Which hold ε's share of x_t.
    columns = [STEP_COLUMNS.index(name) for name in ("x0_from_x", "x0_from_output")]
    rows[:, columns[1]] *= rows[:, columns[0]]
    ours = methods.ddim(d, 1.0, eta).rows
    for name in STEP_COLUMNS[:6]:
        k = STEP_COLUMNS.index(name)
        torch.testing.assert_close(ours[:, k], rows[:, k], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("variance", ["fixed_large", "learned", "learned_range"])
@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_a_chain_of_ddim_is_the_loop_of_its_steps(
    prediction: str, variance: str, eta: float
) -> None:
    d = GaussianDiffusion(SCHEDULE, prediction, variance)

    def network(x: Tensor, t: Tensor) -> Tensor:
        output = 0.2 * x + t.reshape(-1, 1, 1, 1) * 1e-3
        return torch.cat([output, x], 1) if d.learns_variance else output

    def noise(step: int, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(step))

    found = sampler(d, network).sample(2, noise=noise, method="ddim", eta=eta)
    x = noise(25, (2, *SHAPE))
    for i in range(24, -1, -1):
        t = torch.full((2,), i)
        x = ddim_step(d, network(x, d.model_timesteps(t)), x, t, noise(i, x.shape), eta)
    torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_diffusers_ddim_gives_the_same(prediction: str, clip: float | None) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(
        1000, 1e-4, 0.02, clip_sample=clip is not None, prediction_type=prediction
    )
    scheduler.set_timesteps(20)
    network, x = bent, torch.randn(2, *SHAPE)
    d = GaussianDiffusion(NoiseSchedule.linear(1000), prediction, clip=clip)
    found = sampler(d, network).sample(x_T=x, method="ddim", steps=20, spacing="leading")
    for t in scheduler.timesteps:
        output = network(x, t.expand(2))
        x = scheduler.step(output, t, x, use_clipped_model_output=True).prev_sample
    torch.testing.assert_close(found, x, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("steps", [1, 2, 3, 12])
def test_diffusers_multistep_solver_gives_the_same(prediction: str, steps: int) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DPMSolverMultistepScheduler(
        1000, 1e-4, 0.02, prediction_type=prediction, timestep_spacing="leading"
    )
    assert scheduler.config.algorithm_type == "dpmsolver++" and scheduler.config.solver_order == 2
    scheduler.set_timesteps(steps)
    x = torch.randn(2, *SHAPE)
    d = GaussianDiffusion(NoiseSchedule.linear(1000), prediction, clip=None)
    listed = scheduler.timesteps.tolist()
    found = sampler(d, bent).sample(x_T=x, method="dpm-solver++", steps=listed)
    for t in scheduler.timesteps:
        x = scheduler.step(bent(x, t.expand(2)), t, x).prev_sample
    torch.testing.assert_close(found, x, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_diffusers_inversion_gives_the_same(prediction: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMInverseScheduler(
        1000, 1e-4, 0.02, clip_sample=False, prediction_type=prediction
    )
    scheduler.set_timesteps(20)
    x = gaussian.draws(2)
    d = GaussianDiffusion(NoiseSchedule.linear(1000), prediction)
    found = sampler(d, bent).invert(x, steps=20, spacing="leading")
    for t in scheduler.timesteps:
        x = scheduler.step(bent(x, t.expand(2)), t, x).prev_sample
    torch.testing.assert_close(found, x, rtol=2e-3, atol=2e-3)


def bent(x: Tensor, t: Tensor) -> Tensor:
    """A network without an exact answer."""
    return 0.4 * torch.tanh(x) + 1e-3 * t.reshape(-1, 1, 1, 1).to(x.dtype) - 0.2


def errors(run: Any, steps: tuple[int, ...]) -> list[float]:
    return [float(run(n)) for n in steps]


def test_ddim_converges_to_the_exact_map_with_first_order() -> None:
    x_T = torch.randn(4, *SHAPE)
    exact = gaussian.x_0_of(x_T)

    def error(n: int) -> Tensor:
        found = sampler().sample(x_T=x_T, method="ddim", steps=n, spacing="trailing")
        return (found - exact).abs().max()

    coarse, middle, fine = errors(error, (50, 100, 200))
    assert fine < 0.03
    assert 1.8 < coarse / middle < 2.6 and 1.8 < middle / fine < 2.4


def test_the_multistep_solver_has_second_order() -> None:
    """Over even steps of the log-SNR. The step from the last level to no noise is left out: it is
    of first order."""
    x_T = torch.randn(4, *SHAPE)

    def error(n: int, method: str) -> Tensor:
        log_snr = torch.linspace(6, -4, n + 1, dtype=torch.float64)
        a = torch.sigmoid(log_snr)

        def network(x: Tensor, t: Tensor) -> Tensor:
            level = a[t].reshape(-1, 1, 1, 1)
            away = x.double() - level.sqrt() * gaussian.MEAN
            return ((1 - level).sqrt() * away / gaussian.spread(level) ** 2).float()

        d = GaussianDiffusion(NoiseSchedule.from_alphas_cumprod(a), clip=None)
        states = [step.x_t for step in sampler(d, network).stream(x_T=x_T, method=method, every=1)]
        scaled = (x_T.double() - a[-1].sqrt() * gaussian.MEAN) / gaussian.spread(a[-1])
        exact = a[0].sqrt() * gaussian.MEAN + gaussian.spread(a[0]) * scaled
        return (states[-2] - exact).abs().max()

    first = errors(lambda n: error(n, "ddim"), (20, 40, 80))
    second = errors(lambda n: error(n, "dpm-solver++"), (20, 40, 80))
    assert 1.8 < first[0] / first[1] < 2.3 and 1.8 < first[1] / first[2] < 2.3
    assert 3.3 < second[0] / second[1] < 5 and 3.3 < second[1] / second[2] < 5
    assert second[2] < first[2] / 10


@pytest.mark.parametrize("network_at", ["next", "current"])
def test_inversion_converges_to_the_exact_map(network_at: str) -> None:
    x_0 = gaussian.draws(4)
    # "current" goes on to where there is no signal at all.
    gone = (x_0.double() - gaussian.MEAN) / gaussian.VARIANCE**0.5
    exact = gaussian.x_T_of(x_0) if network_at == "next" else gone

    def error(n: int) -> Tensor:
        found = sampler().invert(x_0, steps=n, network_at=network_at)
        return (found - exact).abs().max()

    coarse, fine = errors(error, (100, 400))
    assert fine < 0.03 and 3 < coarse / fine < 5


def test_a_round_trip_comes_back() -> None:
    x_0 = gaussian.draws(4)

    def error(n: int) -> Tensor:
        x_T = sampler().invert(x_0, steps=n)
        return (sampler().sample(x_T=x_T, method="ddim", steps=n) - x_0).abs().max()

    coarse, fine = errors(error, (100, 800))
    assert fine < 0.01 and fine < coarse / 5


def test_undoing_a_step_with_the_same_output_is_exact() -> None:
    """A network that does not look at x: what inversion calls is what the step called."""

    def network(x: Tensor, t: Tensor) -> Tensor:
        return 1e-3 * t.reshape(-1, 1, 1, 1) * torch.ones_like(x)

    d = GaussianDiffusion(SCHEDULE, clip=None)
    chain, x_0 = sampler(d, network), gaussian.draws(2)
    x_T = chain.invert(x_0, steps=12)
    found = chain.sample(x_T=x_T, method="ddim", steps=12)
    torch.testing.assert_close(found, x_0, rtol=1e-4, atol=1e-4)
    assert (x_T - x_0).abs().mean() > 0.3


def test_a_chain_without_signal_at_its_end() -> None:
    schedule = NoiseSchedule.linear(1000).rescale_zero_terminal_snr()
    d = GaussianDiffusion(schedule, "v_prediction")
    for method in ("ddim", "dpm-solver++"):
        chain = sampler(d, lambda x, t: -x)
        assert chain.sample(2, method=method, steps=20, spacing="trailing").isfinite().all()
    blind = GaussianDiffusion(schedule)
    with pytest.raises(ValueError, match="cannot give x_0"):
        sampler(blind, lambda x, t: x)


def test_what_a_prediction_cannot_invert_is_refused() -> None:
    d = GaussianDiffusion(SCHEDULE, "sample")
    with pytest.raises(ValueError, match="network_at='current' takes any"):
        sampler(d, bent).invert(gaussian.draws(1))
    assert sampler(d, bent).invert(gaussian.draws(1), network_at="current").isfinite().all()
