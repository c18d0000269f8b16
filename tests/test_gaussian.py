"""The KL of two Gaussians and the decoder's bins, against torch.distributions and mpmath."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from fastddpm.gaussian import CDFS, discretized_gaussian_log_likelihood, normal_kl, open_tail

LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def test_normal_kl_is_the_kl_of_two_normals() -> None:
    m1, v1, m2, v2 = random(4, 3, 5)
    expected = kl_divergence(Normal(m1, (v1 / 2).exp()), Normal(m2, (v2 / 2).exp()))
    torch.testing.assert_close(normal_kl(m1, v1, m2, v2), expected, rtol=1e-12, atol=1e-14)
    to_standard = kl_divergence(Normal(m1, (v1 / 2).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(normal_kl(m1, v1, 0.0, 0.0), to_standard, rtol=1e-12, atol=1e-14)


def test_normal_kl_keeps_small_differences() -> None:
    """KL = δ²/4 for log-variances that differ by a small δ; in float32 this must not cancel."""
    delta = torch.tensor([1e-3])
    expected = delta**2 / 4
    torch.testing.assert_close(normal_kl(0.0, delta, 0.0, 0.0), expected, rtol=1e-3, atol=0)
    assert normal_kl(delta, delta, delta, delta).item() == 0


def test_normal_kl_of_numbers_only_is_refused() -> None:
    with pytest.raises(ValueError, match="tensor"):
        normal_kl(0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize("cdf", CDFS)
@pytest.mark.parametrize("scale", [0.02, 0.3, 2.0, 50.0])
@pytest.mark.parametrize("mean", [-1.3, 0.0, 0.7])
def test_the_256_bins_hold_all_the_mass(cdf: str, scale: float, mean: float) -> None:
    log_scale = torch.tensor(math.log(scale), dtype=torch.float64)
    mean_ = torch.tensor(mean, dtype=torch.float64)
    bins = discretized_gaussian_log_likelihood(LEVELS, mean_, log_scale, cdf)
    assert bins.exp().sum().item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("scale", [1e-3, 0.05, 1.0, 1e4])
def test_erf_bins_are_exact_to_the_far_tails(scale: float) -> None:
    mpmath = pytest.importorskip("mpmath")
    means = torch.tensor([-1.0, -0.31, 0.0, 0.5, 1.02], dtype=torch.float64)[:, None]
    levels = LEVELS[::17]
    log_scale = torch.tensor(scale, dtype=torch.float64).log()
    actual = discretized_gaussian_log_likelihood(levels, means, log_scale, "erf")
    with mpmath.workdps(60):
        for i, mean in enumerate(means[:, 0].tolist()):
            for j, x in enumerate(levels.tolist()):
                expected = _log_mass(mpmath, x, mean, float(log_scale.exp()))
                assert actual[i, j].item() == pytest.approx(expected, rel=1e-8), (mean, x)


def _log_mass(mpmath, x: float, mean: float, scale: float) -> float:  # type: ignore[no-untyped-def]
    """log of the bin's mass by erfc on the side where it is small, at 60 digits."""
    half = mpmath.mpf(1) / 255
    root = mpmath.sqrt(2) * mpmath.mpf(scale)
    low, high = ((mpmath.mpf(x) - mpmath.mpf(mean) + s * half) / root for s in (-1, 1))
    if x < -0.999:
        mass = mpmath.erfc(-high) / 2
    elif x > 0.999:
        mass = mpmath.erfc(low) / 2
    elif low + high > 0:
        mass = (mpmath.erfc(low) - mpmath.erfc(high)) / 2
    else:
        mass = (mpmath.erfc(-high) - mpmath.erfc(-low)) / 2
    return float(mpmath.log(mass))


def test_tanh_is_close_to_erf_in_mass_and_floored_in_the_tails() -> None:
    scale = torch.tensor(0.1, dtype=torch.float64).log()
    mean = torch.linspace(-1, 1, 41, dtype=torch.float64)[:, None]
    tanh = discretized_gaussian_log_likelihood(LEVELS, mean, scale, "tanh")
    erf = discretized_gaussian_log_likelihood(LEVELS, mean, scale, "erf")
    # each of the two cdf values is off by at most 1.8e-4
    assert (tanh.exp() - erf.exp()).abs().max() < 3.6e-4
    assert (tanh - erf).abs().max() > 1
    assert tanh.min().item() == pytest.approx(math.log(1e-12))
    assert erf.min() < -100


@pytest.mark.parametrize("cdf", CDFS)
def test_gradients(cdf: str) -> None:
    x = LEVELS[[0, 1, 100, 254, 255]]
    mean = (x + 0.1 * random(5)).requires_grad_()
    log_scale = (-2 + 0.3 * random(5, seed=1)).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda m, s: discretized_gaussian_log_likelihood(x, m, s, cdf), (mean, log_scale)
    )


# torch's own gradient of log_ndtr is wrong beyond about 1e7 standard deviations.
@pytest.mark.parametrize(("cdf", "narrowest"), [("tanh", -25.0), ("erf", -9.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extremes_are_finite_with_their_gradients(
    cdf: str, narrowest: float, dtype: torch.dtype
) -> None:
    x = LEVELS.to(dtype)[:, None]
    mean = torch.tensor([-1e3, -1.0, 300.0, 30.0], dtype=dtype, requires_grad=True)
    log_scale = torch.tensor([-9.0, 5.0, narrowest, 0.0], dtype=dtype, requires_grad=True)
    bins = discretized_gaussian_log_likelihood(x, mean, log_scale, cdf)
    assert bins.dtype == dtype and bins.isfinite().all() and (bins <= 0).all()
    bins.sum().backward()
    assert mean.grad is not None and mean.grad.isfinite().all()
    assert log_scale.grad is not None and log_scale.grad.isfinite().all()


def test_open_tails_are_the_end_levels() -> None:
    tails = open_tail(LEVELS.float())
    assert tails[0] == -1 and tails[-1] == 1 and not tails[1:-1].any()


def test_unknown_cdf_is_refused() -> None:
    with pytest.raises(ValueError, match="tanh, erf"):
        discretized_gaussian_log_likelihood(LEVELS, LEVELS, LEVELS, "logistic")
