"""Noise schedules: definitions, tables against brute-force products and Bayes, respacing."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastddpm import timesteps
from fastddpm.schedule import SCHEDULES, NoiseSchedule

TABLES = [
    name
    for name in vars(NoiseSchedule)
    if type(vars(NoiseSchedule)[name]).__name__ == "cached_property"
]


@st.composite
def schedules(draw: st.DrawFn) -> NoiseSchedule:
    betas = draw(st.lists(st.floats(1e-5, 0.5), min_size=2, max_size=30))
    return NoiseSchedule.from_betas(betas)


def close(actual: torch.Tensor, expected: torch.Tensor | np.ndarray, rtol: float = 1e-12) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected), rtol=rtol, atol=1e-300)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_every_schedule_is_float64_and_never_adds_signal(name: str) -> None:
    s = NoiseSchedule.named(name, 100)
    assert len(s) == 100 and s.timesteps.tolist() == list(range(100))
    for table in TABLES:
        values = getattr(s, table)
        assert values.dtype == torch.float64 and values.shape == (100,), table
        assert not values.isnan().any(), table
    assert ((s.betas > 0) & (s.betas <= 1)).all()
    assert (s.alphas_cumprod.diff() < 0).all()


def test_definitions() -> None:
    T, start, end = 50, 1e-4, 0.02
    line = np.linspace(start, end, T)
    close(NoiseSchedule.linear(T, start, end).betas, line)
    close(NoiseSchedule.openai_linear(T).betas, np.linspace(0.002, 0.4, T))
    close(
        NoiseSchedule.scaled_linear(T, start, end).betas,
        np.linspace(start**0.5, end**0.5, T) ** 2,
    )
    close(NoiseSchedule.sqrt(T, start, end).betas, line**0.5)
    close(NoiseSchedule.const(T, end).betas, np.full(T, end))
    close(NoiseSchedule.jsd(T).betas, 1 / np.arange(T, 0, -1))
    logistic = 1 / (1 + np.exp(-np.linspace(-6, 6, T)))
    close(NoiseSchedule.sigmoid(T, start, end).betas, start + logistic * (end - start))
    for name, rising in (("warmup10", 5), ("warmup50", 25)):
        betas = NoiseSchedule.named(name, T, beta_start=start, beta_end=end).betas
        close(betas[:rising], np.linspace(start, end, rising))
        close(betas[rising:], np.full(T - rising, end))


def test_curves_of_alphas_cumprod() -> None:
    T = 50
    u = np.arange(1, T + 1) / T
    cosine = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    close(NoiseSchedule.cosine(T).alphas_cumprod[:-1], cosine[:-1], rtol=1e-10)
    assert NoiseSchedule.cosine(T).betas[-1] == 0.999
    logistic = 1 / (1 + np.exp(-(6 * u - 3)))
    ends = 1 / (1 + np.exp([3.0, -3.0]))
    close(
        NoiseSchedule.sigmoid_alpha_bar(T).alphas_cumprod[:-1],
        ((ends[1] - logistic) / (ends[1] - ends[0]))[:-1],
        rtol=1e-10,
    )


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("linear", "linear"),
        ("scaled_linear", "scaled_linear"),
        ("cosine", "squaredcos_cap_v2"),
        ("sigmoid", "sigmoid"),
        ("laplace", "laplace"),
    ],
)
def test_betas_equal_diffusers_to_its_float32(name: str, theirs: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    expected = diffusers.DDPMScheduler(200, beta_schedule=theirs).betas
    torch.testing.assert_close(
        NoiseSchedule.named(name, 200).betas.float(), expected, rtol=2e-6, atol=1e-7
    )


@given(schedules())
def test_tables_against_products_in_higher_precision(s: NoiseSchedule) -> None:
    alpha_bar = np.cumprod(1 - s.betas.numpy().astype(np.longdouble))
    previous = np.concatenate([[np.longdouble(1)], alpha_bar[:-1]])
    betas = s.betas.numpy().astype(np.longdouble)

    def check(actual: torch.Tensor, expected: np.ndarray) -> None:
        # 1 - ᾱ_0 = β_0 loses about 1e-16/β_0 in float64
        torch.testing.assert_close(
            actual, torch.from_numpy(expected.astype(np.float64)), rtol=1e-9, atol=1e-11
        )

    check(s.alphas_cumprod, alpha_bar)
    check(s.alphas_cumprod_prev, previous)
    check(s.sqrt_alphas_cumprod, np.sqrt(alpha_bar))
    check(s.sqrt_one_minus_alphas_cumprod, np.sqrt(1 - alpha_bar))
    check(s.log_one_minus_alphas_cumprod, np.log(1 - alpha_bar))
    check(s.sqrt_recip_alphas_cumprod, 1 / np.sqrt(alpha_bar))
    check(s.sqrt_recipm1_alphas_cumprod, np.sqrt((1 - alpha_bar) / alpha_bar))
    check(s.snr, alpha_bar / (1 - alpha_bar))
    check(s.posterior_variance, (1 - previous) / (1 - alpha_bar) * betas)


@given(schedules())
def test_posterior_is_bayes_rule(s: NoiseSchedule) -> None:
    """q(x_{t-1}|x_t,x_0) ∝ q(x_t|x_{t-1}) q(x_{t-1}|x_0): precisions add."""
    beta, alpha = s.betas[1:], s.alphas[1:]
    prior_variance = 1 - s.alphas_cumprod_prev[1:]
    precision = alpha / beta + 1 / prior_variance
    close(s.posterior_variance[1:], 1 / precision, rtol=1e-8)
    close(
        s.posterior_mean_coef1[1:],
        s.alphas_cumprod_prev[1:].sqrt() / prior_variance / precision,
        rtol=1e-8,
    )
    close(s.posterior_mean_coef2[1:], alpha.sqrt() / beta / precision, rtol=1e-8)
    # at the first step x_0 itself is the answer
    assert s.posterior_variance[0] == 0 and s.posterior_mean_coef2[0] == 0
    assert s.posterior_mean_coef1[0] == pytest.approx(1, rel=1e-10)


def test_log_variance_at_the_first_step_is_the_seconds() -> None:
    s = NoiseSchedule.linear()
    assert s.posterior_log_variance_clipped[0] == s.posterior_variance[1].log()
    close(s.posterior_log_variance_clipped[1:], s.posterior_variance[1:].log())
    assert s.posterior_log_variance_clipped[0] == pytest.approx(-9.8167, abs=1e-4)
    one = NoiseSchedule.from_betas([0.3])
    assert one.posterior_log_variance_clipped.tolist() == [pytest.approx(math.log(0.3))]


# ---- respacing


@settings(deadline=None)
@given(schedules(), st.data())
def test_respacing_keeps_alphas_cumprod_and_original_timesteps(
    s: NoiseSchedule, data: st.DataObject
) -> None:
    chosen = data.draw(st.lists(st.sampled_from(range(len(s))), min_size=1, unique=True))
    short = s.respace(chosen)
    kept = sorted(chosen)
    assert short.timesteps.tolist() == kept
    close(short.alphas_cumprod, s.alphas_cumprod[kept], rtol=1e-11)
    again = data.draw(st.lists(st.sampled_from(kept), min_size=1, unique=True))
    twice = short.respace(torch.tensor(again))
    assert twice.timesteps.tolist() == sorted(again)
    close(twice.alphas_cumprod, s.alphas_cumprod[sorted(again)], rtol=1e-10)


def test_respacing_to_every_step_changes_nothing() -> None:
    s = NoiseSchedule.linear()
    assert s.respace(range(1000)) is s


@pytest.mark.parametrize("steps", [[0, 0], [1000], [-1], [], [0.5], [[1, 2]], [True]])
def test_respacing_refuses(steps: list[object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        NoiseSchedule.linear().respace(steps)  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [50, None, 3.0])
def test_respacing_wants_a_list(steps: Any) -> None:
    with pytest.raises(ValueError, match=f"expected a list of timesteps .* got {steps}"):
        NoiseSchedule.linear().respace(steps)


def test_respacing_a_respaced_chain_takes_original_timesteps() -> None:
    short = NoiseSchedule.linear().respace(timesteps.trailing(1000, 50))
    assert short.respace([999, 19]).timesteps.tolist() == [19, 999]
    with pytest.raises(ValueError, match="20"):
        short.respace([20])


def test_zero_terminal_snr() -> None:
    s = NoiseSchedule.linear()
    rescaled = s.rescale_zero_terminal_snr()
    assert rescaled.alphas_cumprod[-1] == 0 and rescaled.betas[-1] == 1
    assert float(rescaled.alphas_cumprod[0]) == pytest.approx(float(s.alphas_cumprod[0]))
    # linear in √ᾱ
    before, after = s.sqrt_alphas_cumprod, rescaled.sqrt_alphas_cumprod
    close(after.diff() / before.diff(), (after.diff() / before.diff())[0].expand(999), rtol=1e-8)
    with pytest.raises(ValueError, match="at least 2"):
        NoiseSchedule.linear(1).rescale_zero_terminal_snr()


def test_from_alphas_cumprod_inverts_the_product() -> None:
    s = NoiseSchedule.cosine(100)
    close(NoiseSchedule.from_alphas_cumprod(s.alphas_cumprod).betas, s.betas, rtol=1e-9)


# ---- mistakes


@pytest.mark.parametrize(
    ("betas", "message"),
    [
        ([0.1, 0.0], "0.0 at step 1"),
        ([1.5], "1.5 at step 0"),
        ([0.1, float("nan")], "nan at step 1"),
        ([], r"\[T\]"),
        ([[0.1]], r"\[1, 1\]"),
    ],
)
def test_betas_out_of_range_are_refused(betas: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NoiseSchedule.from_betas(betas)


def test_timesteps_must_fit_the_betas() -> None:
    for steps, message in (([1], "one timestep for each"), ([3, 2], "ascending")):
        with pytest.raises(ValueError, match=message):
            NoiseSchedule.from_betas([0.1, 0.2], timesteps=steps)


def test_unknown_names_list_the_choices() -> None:
    with pytest.raises(ValueError, match=r"linear, .*jsd.*got 'lineal'"):
        NoiseSchedule.named("lineal")
    with pytest.raises(ValueError, match="takes beta_start, beta_end, got 'beta_stop'"):
        NoiseSchedule.named("linear", beta_stop=0.1)
    with pytest.raises(ValueError, match="at least 1 step"):
        NoiseSchedule.cosine(0)


def test_a_schedule_is_frozen_and_owns_its_betas() -> None:
    betas = torch.full((3,), 0.1, dtype=torch.float64)
    s = NoiseSchedule.from_betas(betas)
    betas.zero_()
    assert s.betas.tolist() == [0.1] * 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        s.betas = betas  # type: ignore[misc]
    assert "3 steps" in repr(s)


def test_python_floats_keep_their_precision() -> None:
    assert NoiseSchedule.from_betas([0.1]).betas.item() == 0.1
    assert NoiseSchedule.from_betas(np.array([0.1])).betas.item() == 0.1
