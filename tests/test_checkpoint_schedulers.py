"""Scheduler configs against diffusers' own schedulers, and the way there and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fastddpm.checkpoint.schedulers import read_scheduler, write_scheduler
from fastddpm.diffusion import GaussianDiffusion
from fastddpm.schedule import NoiseSchedule

SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 300},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 50},
    "sigmoid": {"beta_schedule": "sigmoid"},
    "laplace": {"beta_schedule": "laplace", "num_train_timesteps": 100},
    "trained betas": {"trained_betas": [0.1, 0.2, 0.05, 0.4], "num_train_timesteps": 4},
    "zero terminal SNR": {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    "large": {"variance_type": "fixed_large"},
    "small by its logarithm": {"variance_type": "fixed_small_log"},
    "learned range": {"variance_type": "learned_range"},
    "sample": {"prediction_type": "sample"},
    "no clipping": {"clip_sample": False},
    "wide clipping": {"clip_sample_range": 3.5},
    "sampling settings": {"timestep_spacing": "trailing", "steps_offset": 1},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_against_ddpm_scheduler(name: str, tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(**SETTINGS[name])
    scheduler.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "scheduler_config.json").read_text())
    diffusion = read_scheduler(written, "config")
    # diffusers' tables are float32: its betas are 1e-7 off, and 1 - a product of alphas more.
    tables = {"rtol": 2e-4, "atol": 1e-6}
    torch.testing.assert_close(diffusion.schedule.betas, scheduler.betas.double(), **tables)

    config = scheduler.config
    assert diffusion.prediction == config.prediction_type
    assert diffusion.variance == config.variance_type.removesuffix("_log")
    assert diffusion.clip == (config.clip_sample_range if config.clip_sample else None)
    assert diffusion.last_step_noise == "none" and diffusion.timestep_scale is None

    (tmp_path / "scheduler_config.json").write_text(json.dumps(write_scheduler(diffusion)))
    again = diffusers.DDPMScheduler.from_pretrained(tmp_path)
    torch.testing.assert_close(again.alphas_cumprod, scheduler.alphas_cumprod, **tables)
    for key in ("prediction_type", "clip_sample", "num_train_timesteps"):
        assert again.config[key] == config[key]
    assert again.config.variance_type == config.variance_type.removesuffix("_log")


SCHEDULES = {
    "linear": NoiseSchedule.linear(1000),
    "openai_linear": NoiseSchedule.openai_linear(50),
    "scaled_linear": NoiseSchedule.scaled_linear(1000, 0.00085, 0.012),
    "cosine": NoiseSchedule.cosine(100),
    "sigmoid": NoiseSchedule.sigmoid(20),
    "jsd": NoiseSchedule.jsd(10),
    "one step": NoiseSchedule.linear(1),
    "zero terminal SNR": NoiseSchedule.linear(1000).rescale_zero_terminal_snr(),
    "respaced": NoiseSchedule.linear(1000).respace([0, 10, 500, 999]),
}
PROCESSES: list[dict[str, Any]] = [
    {},
    {"prediction": "v_prediction", "variance": "fixed_large", "clip": None},
    {"prediction": "previous_sample"},
    {"variance": "learned"},
    {"variance": "learned_range", "clip": 0.3},
    {"last_step_noise": "diffusers"},
    {"timestep_scale": 0.25},
]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("settings", PROCESSES, ids=str)
def test_round_trip_is_exact(name: str, settings: dict[str, Any]) -> None:
    diffusion = GaussianDiffusion(SCHEDULES[name], **settings)
    values = json.loads(json.dumps(write_scheduler(diffusion)))
    again = read_scheduler(values, "config")
    assert torch.equal(again.schedule.betas, diffusion.schedule.betas)
    assert torch.equal(again.schedule.timesteps, diffusion.schedule.timesteps)
    for field in ("prediction", "variance", "clip", "last_step_noise", "timestep_scale"):
        assert getattr(again, field) == getattr(diffusion, field)


def test_known_schedules_are_written_by_name() -> None:
    written = write_scheduler(GaussianDiffusion(NoiseSchedule.scaled_linear(1000, 0.00085, 0.012)))
    assert (written["beta_schedule"], written["trained_betas"]) == ("scaled_linear", None)
    assert (written["beta_start"], written["beta_end"]) == (0.00085, 0.012)
    assert "fastddpm" not in written


@pytest.mark.parametrize(
    ("schedule", "settings"),
    [
        ("respaced", {}),
        ("linear", {"prediction": "previous_sample"}),
        ("linear", {"variance": "learned"}),
        ("linear", {"timestep_scale": 0.25}),
    ],
)
def test_diffusers_refuses_what_it_would_misread(
    schedule: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    diffusers = pytest.importorskip("diffusers")
    written = write_scheduler(GaussianDiffusion(SCHEDULES[schedule], **settings))
    (tmp_path / "scheduler_config.json").write_text(json.dumps(written))
    with pytest.raises(NotImplementedError, match=r"fastddpm.from_pretrained only"):
        diffusers.DDPMScheduler.from_pretrained(tmp_path)


def test_ddim_scheduler_of_a_network_that_learns_its_variance() -> None:
    values = {"_class_name": "DDIMScheduler", "set_alpha_to_one": True, "clip_sample": False}
    assert read_scheduler(values, "config").variance == "fixed_small"
    assert read_scheduler(values, "config", doubled=True).variance == "learned_range"


def test_predict_epsilon_of_old_configs() -> None:
    assert read_scheduler({"predict_epsilon": False}, "config").prediction == "sample"
    assert read_scheduler({"predict_epsilon": True}, "config").prediction == "epsilon"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"thresholding": True}, "thresholding=true"),
        ({"variance_type": "learned"}, "log σ²"),
        ({"variance_type": "fixed_large_log"}, "NaN"),
        ({"variance_type": "huge"}, "expected one of fixed_small"),
        ({"beta_schedule": "cubic"}, "beta_schedule in linear"),
        ({"prediction_type": "flow"}, "prediction"),
        ({"_class_name": "EulerDiscreteScheduler"}, "EulerDiscreteScheduler"),
        ({"snr_shift": 3.0}, "unknown scheduler settings snr_shift"),
        ({"num_train_timesteps": "many"}, "num_train_timesteps: expected int, found 'many'"),
        ({"num_train_timesteps": True}, "num_train_timesteps: expected int, found True"),
        ({"trained_betas": [0.1, 0.2]}, "expected 1000"),
        ({"trained_betas": [0.1, 1.2], "num_train_timesteps": 2}, "1.2"),
        ({"fastddpm": {"steps": 3}}, "fastddpm"),
        ({"fastddpm": {"betas": []}}, "betas"),
        ({"fastddpm": {"timesteps": [0, 2]}}, "fastddpm: timesteps .*betas"),
        ({"fastddpm": {"timesteps": []}}, "fastddpm: timesteps .*betas"),
        ({"fastddpm": {"prediction": ""}}, "prediction"),
        ({"fastddpm": {"variance": ""}}, "variance"),
    ],
)
def test_wrong_settings(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_scheduler(values, "config")
