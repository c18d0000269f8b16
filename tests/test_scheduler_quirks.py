"""Each row of schedulers.py's table of quirks: kept and mended, with the effect that it names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastddpm import timesteps
from fastddpm.diffusion import GaussianDiffusion
from fastddpm.integrations import diffusers as integration
from fastddpm.kernels.ancestral_step.reference import STEP_COLUMNS
from fastddpm.sampler.ddim import ddim_step
from fastddpm.schedule import NoiseSchedule

diffusers = pytest.importorskip("diffusers")
FastDDPMScheduler = integration.FastDDPMScheduler
FastDDIMScheduler = integration.FastDDIMScheduler

SPACINGS = ("leading", "linspace", "trailing")


def images(channels: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, channels, 4, 5, generator=generator, dtype=torch.float64)


def both(fast: Any, n: int | None, **config: Any) -> list[Any]:
    """The scheduler as diffusers has it, and as it should be."""
    made = [fast(**config, compatibility=kind) for kind in ("diffusers", "exact")]
    if n is not None:
        for scheduler in made:
            scheduler.set_timesteps(n)
    return made


def rows(scheduler: Any, name: str) -> Tensor:
    """A column of DDPM's rows, at the timesteps that are visited."""
    column = scheduler._current()[0].rows[:, STEP_COLUMNS.index(name)]
    return column[scheduler.timesteps]


# ---- exact: the library's own mathematics, in float64


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned", "learned_range"])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_exact_ddpm_is_the_reverse_process(spacing: str, prediction: str, variance: str) -> None:
    config = {"timestep_spacing": spacing, "prediction_type": prediction, "variance_type": variance}
    scheduler = FastDDPMScheduler(**config, compatibility="exact")
    scheduler.set_timesteps(13)
    schedule = NoiseSchedule.linear(1000).respace(timesteps.spaced(spacing, 1000, 13))
    diffusion = GaussianDiffusion(schedule, prediction, variance)
    x, output = images(), images(6 if "learned" in variance else 3, seed=1)
    for k, t in enumerate(scheduler.timesteps):
        i = torch.full((2,), 12 - k)
        generator = torch.Generator().manual_seed(4)
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        step = scheduler.step(output, t, x, generator=generator.manual_seed(4))
        expected = diffusion.p_step(output, x, i, noise)
        torch.testing.assert_close(step.prev_sample, expected, rtol=1e-9, atol=1e-9)
        x_0 = diffusion.p_mean_variance(output, x, i).x_0
        torch.testing.assert_close(step.pred_original_sample, x_0, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_exact_ddim_is_the_librarys(spacing: str, prediction: str, eta: float) -> None:
    config = {"timestep_spacing": spacing, "prediction_type": prediction}
    scheduler = FastDDIMScheduler(**config, compatibility="exact")
    scheduler.set_timesteps(13)
    schedule = NoiseSchedule.linear(1000).respace(timesteps.spaced(spacing, 1000, 13))
    diffusion = GaussianDiffusion(schedule, prediction)
    x, output, noise = images(), images(seed=1), images(seed=2)
    for k, t in enumerate(scheduler.timesteps):
        given = noise if eta > 0 else None
        step = scheduler.step(output, t, x, eta=eta, variance_noise=given)
        expected = ddim_step(diffusion, output, x, torch.full((2,), 12 - k), noise, eta)
        torch.testing.assert_close(step.prev_sample, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", ["add_noise", "get_velocity"])
def test_exact_levels(method: str) -> None:
    schedule = NoiseSchedule.linear(1000)
    scheduler = FastDDPMScheduler(compatibility="exact")
    assert torch.equal(scheduler.betas, schedule.betas)
    t = torch.tensor([0, 700])
    signal, spread = (
        table[t].reshape(2, 1, 1, 1)
        for table in (schedule.sqrt_alphas_cumprod, schedule.sqrt_one_minus_alphas_cumprod)
    )
    x, noise = images(), images(seed=1)
    expected = signal * x + spread * noise
    if method == "get_velocity":
        expected = signal * noise - spread * x
    torch.testing.assert_close(
        getattr(scheduler, method)(x, noise, t), expected, rtol=1e-12, atol=1e-12
    )


# ---- the table, row by row


def test_float32_tables() -> None:
    kept, exact = both(FastDDPMScheduler, None)
    spread = [1 - each.alphas_cumprod.double() for each in (kept, exact)]
    error = ((spread[0] - spread[1]) / spread[1]).abs().max()
    assert 1.6e-4 < error < 1.8e-4
    table = [each._current()[0].rows for each in (kept, exact)]
    beta = [each[:, STEP_COLUMNS.index("log_variance_max")] for each in table]
    error = (beta[0] - beta[1]).abs().max()
    assert 4.7e-4 < error < 5.2e-4
    mean = [each[:, STEP_COLUMNS.index("mean_from_x")] for each in table]
    error = (mean[0] - mean[1]).abs().max()
    assert 0.9e-4 < error < 1.3e-4


@pytest.mark.parametrize(
    ("n", "deviation"), [(10, 0.321), (50, 0.076), (100, 0.0435), (250, 0.0228), (500, 0.0148)]
)
def test_noise_at_the_last_step(n: int, deviation: float) -> None:
    """Trailing timesteps end above 0, where diffusers still adds noise."""
    config = {"timestep_spacing": "trailing", "variance_type": "fixed_large"}
    kept, exact = both(FastDDPMScheduler, n, **config)
    assert float(rows(kept, "sigma")[-1]) == pytest.approx(deviation, rel=5e-3)
    assert float(rows(exact, "sigma")[-1]) == 0
    assert (rows(exact, "sigma")[:-1] > 0).all()
    kept, _ = both(FastDDPMScheduler, n, timestep_spacing="trailing")
    assert float(rows(kept, "sigma")[-1]) == pytest.approx(1e-10)
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    exact.step(images(), exact.timesteps[-1], images(), generator=generator)
    assert torch.equal(generator.get_state(), before)


def test_noise_at_the_last_step_of_ddim() -> None:
    """With eta above 0 and set_alpha_to_one=False, whose last ᾱ' is below 1."""
    config = {"timestep_spacing": "trailing", "set_alpha_to_one": False}
    kept, exact = both(FastDDIMScheduler, 10, **config)
    z = torch.full_like(images(), 100.0)
    added = []
    for scheduler in (kept, exact):
        a, b = (
            scheduler.step(images(seed=1), 99, images(), eta=1.0, variance_noise=k * z).prev_sample
            for k in (0, 1)
        )
        added.append(float((b - a).abs().max()) / 100)
    assert added[0] == pytest.approx(9.99e-3, rel=1e-2) and added[1] == 0


def test_fixed_large_log() -> None:
    kept, exact = both(FastDDPMScheduler, 50, variance_type="fixed_large_log")
    large, _ = both(FastDDPMScheduler, 50, variance_type="fixed_large")
    assert rows(kept, "sigma")[:-1].isnan().all()
    torch.testing.assert_close(rows(exact, "sigma"), rows(large, "sigma"), rtol=3e-4, atol=0)


def test_fixed_small_log_is_a_deviation() -> None:
    kept, _ = both(FastDDPMScheduler, 50, variance_type="fixed_small_log")
    small, _ = both(FastDDPMScheduler, 50)
    theirs = diffusers.DDPMScheduler(variance_type="fixed_small_log")
    theirs.set_timesteps(50)
    t = int(theirs.timesteps[3])
    assert float(theirs._get_variance(t)) == pytest.approx(float(rows(small, "sigma")[3]), rel=1e-6)
    torch.testing.assert_close(rows(kept, "sigma"), rows(small, "sigma"), rtol=1e-6, atol=0)


def test_learned_is_a_variance() -> None:
    """Or its logarithm: for an output of 0.5 a deviation of .71 or 1.28, for -1 NaN or .61."""
    x, mean = images().float(), images(seed=1).float()
    found = []
    for scheduler in both(FastDDPMScheduler, None, variance_type="learned"):
        for value in (0.5, -1.0):
            output = torch.cat([mean, torch.full_like(mean, value)], dim=1)
            affine, _, _ = scheduler._current()
            still, moved = (affine(x, output, 500, k * torch.ones_like(x))[0] for k in (0, 1))
            found.append(float((moved - still).mean()))
    assert found[::2] == pytest.approx([0.5**0.5, np.exp(0.25)], rel=1e-4)
    assert np.isnan(found[1]) and found[3] == pytest.approx(np.exp(-0.5), rel=1e-4)


def test_ddim_steps_by_a_whole_number() -> None:
    """ᾱ' is that of t - T//n, whatever the list says follows."""
    kept, exact = both(FastDDIMScheduler, 7, timestep_spacing="trailing")
    after = [scheduler._current()[0][999] for scheduler in (kept, exact)]
    assert after == [857, 856]
    kept, exact = both(FastDDIMScheduler, 300, timestep_spacing="linspace")
    signals = []
    for scheduler in (kept, exact):
        after = torch.tensor(scheduler._current()[0])[scheduler.timesteps].clamp(min=0)
        signals.append(exact.alphas_cumprod[after] ** 0.5)
    assert 1e-3 < float((signals[0] - signals[1]).abs().max()) < 3e-3


def test_ddim_derives_epsilon_anew() -> None:
    """The state's share of noise is too large where x_0 was clipped: asked for, both do it."""
    kept, exact = both(FastDDIMScheduler, 50)
    t, x, output = exact.timesteps[0], images(), images(seed=1)
    default = [each.step(output, t, x).prev_sample for each in (kept, exact)]
    asked = [each.step(output, t, x, use_clipped_model_output=True) for each in (kept, exact)]
    refused = [each.step(output, t, x, use_clipped_model_output=False) for each in (kept, exact)]
    torch.testing.assert_close(asked[0].prev_sample, default[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(asked[1].prev_sample, default[1], rtol=0, atol=0)
    torch.testing.assert_close(refused[1].prev_sample, default[0], rtol=1e-4, atol=1e-4)
    assert float((default[0] - default[1]).square().mean().sqrt()) > 0.1


def test_trailing_timesteps_may_be_one_too_many() -> None:
    longer = []
    for n in range(1, 1001):
        listed = len(np.arange(1000, 0, -1000 / n))
        if listed != n:
            longer.append(n)
    assert longer
    for n in longer[:3]:
        kept, exact = both(FastDDPMScheduler, n, timestep_spacing="trailing")
        assert len(kept.timesteps) == n + 1 and int(kept.timesteps[-1]) == -1
        assert len(exact.timesteps) == n and int(exact.timesteps[-1]) >= 0


def test_levels_in_half_precision() -> None:
    """ᾱ_0 = .9999 is 1 in half precision: nothing is added there."""
    added = []
    for scheduler in both(FastDDPMScheduler, None):
        noise = torch.ones(1, 1, 1, 1, dtype=torch.float16)
        added.append(float(scheduler.add_noise(0 * noise, noise, torch.tensor([0]))))
    assert added[0] == 0 and added[1] == pytest.approx(0.01, rel=1e-3)


def test_no_signal_left() -> None:
    """ᾱ = 0: diffusers divides by it, and clips to the sign; exact tables refuse epsilon."""
    theirs = diffusers.DDPMScheduler(rescale_betas_zero_snr=True)
    kept, exact = both(FastDDPMScheduler, None, rescale_betas_zero_snr=True)
    x, output = images().float(), images(seed=1).float()
    expected = theirs.step(output, 999, x, generator=torch.Generator().manual_seed(0))
    found = kept.step(output, 999, x, generator=torch.Generator().manual_seed(0))
    assert torch.equal(expected.pred_original_sample, found.pred_original_sample)
    assert set(found.pred_original_sample.abs().unique().tolist()) == {1.0}
    torch.testing.assert_close(found.prev_sample, expected.prev_sample, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="epsilon says nothing of x_0"):
        exact.step(output, 999, x)


def test_the_rank_of_a_threshold() -> None:
    """In float32 it is off by up to 1.2e-4 of an element among 3071."""
    x = torch.linspace(0, 3, 3072).reshape(1, 3, 32, 32)
    config = {"thresholding": True, "prediction_type": "sample", "sample_max_value": 9.0}
    kept, exact = (
        each.step(x, 0, x).pred_original_sample for each in both(FastDDPMScheduler, None, **config)
    )
    theirs = diffusers.DDPMScheduler(**config).step(x, 0, x).pred_original_sample
    torch.testing.assert_close(kept, theirs, rtol=2e-7, atol=0)
    torch.testing.assert_close(exact, theirs, rtol=1e-6, atol=0)
