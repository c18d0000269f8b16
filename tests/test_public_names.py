"""The public names and call forms that others rely on: a change here breaks their code."""

from __future__ import annotations

import inspect

import pytest
import torch

import fastddpm

SIGNATURES = {
    fastddpm.NoiseSchedule.linear: ["T", "beta_start", "beta_end"],
    fastddpm.NoiseSchedule.respace: ["self", "timesteps"],
    fastddpm.GaussianDiffusion: ["schedule", "prediction", "variance", "clip"],
    fastddpm.GaussianDiffusion.q_mean_variance: ["self", "x_0", "t"],
    fastddpm.GaussianDiffusion.q_sample: ["self", "x_0", "t", "noise"],
    fastddpm.GaussianDiffusion.q_posterior: ["self", "x_0", "x_t", "t"],
    fastddpm.GaussianDiffusion.p_mean_variance: ["self", "model_output", "x_t", "t"],
    fastddpm.GaussianDiffusion.p_step: ["self", "model_output", "x_t", "t", "noise"],
    fastddpm.GaussianDiffusion.score: ["self", "model_output", "x_t", "t"],
    fastddpm.GaussianDiffusion.training_losses: ["self", "model", "x_0", "t", "noise", "kind"],
    fastddpm.UNet: ["config"],
    fastddpm.UNet.forward: ["self", "x", "t", "labels"],
    fastddpm.from_pretrained: ["name_or_path"],
    fastddpm.save_pretrained: ["folder", "unet", "diffusion"],
    fastddpm.Sampler: ["model", "diffusion", "engine", "device", "dtype"],
    fastddpm.Sampler.sample: ["self", "n", "seed"],
    fastddpm.Sampler.stream: ["self", "n", "seed", "every"],
    fastddpm.Sampler.interpolate: ["self", "a", "b", "t", "lambdas", "seed"],
}


@pytest.mark.parametrize("call", SIGNATURES, ids=lambda call: call.__qualname__)
def test_positional_arguments(call: object) -> None:
    parameters = inspect.signature(call).parameters.values()
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional[: len(SIGNATURES[call])] == SIGNATURES[call]


def test_defaults() -> None:
    diffusion = fastddpm.GaussianDiffusion(fastddpm.NoiseSchedule.linear(1000))
    assert (diffusion.prediction, diffusion.variance, diffusion.clip) == (
        "epsilon",
        "fixed_small",
        1.0,
    )
    betas = diffusion.schedule.betas
    torch.testing.assert_close(betas, torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))


def test_tables_are_float64_of_length_T() -> None:
    schedule = fastddpm.NoiseSchedule.linear(10)
    for name in (
        *("betas", "alphas_cumprod", "posterior_variance", "posterior_log_variance_clipped"),
        *("posterior_mean_coef1", "posterior_mean_coef2"),
    ):
        table = getattr(schedule, name)
        assert table.dtype == torch.float64
        assert table.shape == (10,)
    assert torch.equal(schedule.timesteps, torch.arange(10))


def test_results_are_named() -> None:
    assert fastddpm.Prediction._fields == ("mean", "variance", "log_variance", "x_0", "epsilon")
    assert [*inspect.signature(fastddpm.Step).parameters] == ["t", "x_t", "x_0"]
