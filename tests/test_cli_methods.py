"""``fastddpm sample`` with fewer steps, other methods, guidance and the analytic variance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_runs import STEPS, fails, sampler_of, samples_of, save, small_unet, succeeds

from fastddpm.sampler import to_uint8


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("cli") / "model", small_unet(num_class_embeds=3))


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (["--steps", 5, "--method", "ddim"], {"steps": 5, "method": "ddim"}),
        (["--method", "ddim", "--eta", 0.5], {"method": "ddim", "eta": 0.5}),
        (["--steps", "2,3", "--clip", "dynamic"], {"steps": "2,3", "clip": "dynamic"}),
        (["--method", "dpm-solver++", "--clip", "none"], {"method": "dpm-solver++", "clip": None}),
        (
            ["--method", "langevin", "--corrections", 2, "--step-size", 0.25],
            {"method": "langevin", "corrections": 2, "step_size": 0.25},
        ),
        (["--guidance", 2.5, "--null-label", 0], {"guidance": 2.5, "null_label": 0}),
    ],
)
def test_options_are_the_samplers(
    model: str, tmp_path: Path, arguments: list[Any], options: dict[str, Any]
) -> None:
    out = tmp_path / "out"
    succeeds("sample", "-m", model, "-n", 3, "--labels", "2,1", "-o", out, *arguments)
    expected = sampler_of(model).sample(3, labels=[2, 1, 2], **options)
    assert np.array_equal(samples_of(out), to_uint8(expected).numpy())
    held = json.loads((out / "settings.json").read_text())
    for name, value in options.items():
        assert held[name] == (value if name != "steps" else 5)
    # Samples of another method are not gone on with.
    again = fails("sample", "-m", model, "-n", 3, "--labels", "2,1", "-o", out)
    assert "other settings" in again or "settings" in again


def test_the_analytic_variance_comes_from_a_file(model: str, tmp_path: Path) -> None:
    sampler, file = sampler_of(model), tmp_path / "measured.json"
    images = torch.rand(4, *sampler.shape) * 2 - 1
    measured = sampler.measure(images, labels=1)
    measured.save(file)
    arguments = ["--labels", 1, "--steps", 4, "--variance", file]
    succeeds("sample", "-m", model, "-n", 2, "-o", tmp_path / "out", *arguments)
    expected = sampler.sample(2, labels=1, steps=4, variance=measured)
    assert np.array_equal(samples_of(tmp_path / "out"), to_uint8(expected).numpy())
    assert not torch.equal(expected, sampler.sample(2, labels=1, steps=4))
    assert "sha256" in json.loads((tmp_path / "out/settings.json").read_text())["variance"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "euler"], "--method is one of ancestral, ddim, dpm-solver++, langevin; got"),
        (["--method", "ddim-inverse"], "Sampler.invert"),
        (["--eta", "0.5"], "for method 'ddim'"),
        (["--corrections", "1"], "of method 'langevin'"),
        (["--method", "langevin", "--step-size", "2"], "above 0 and at most 1"),
        (["--clip", "wide"], "--clip is a number"),
        (["--clip", "-1"], "clip is a number above 0"),
        (["--guidance", "2"], "guidance= needs labels="),
        (["--null-label", "9", "--guidance", "2", "--labels", "1"], "labels must lie in 0 to 2"),
        (["--steps", "ddim7"], "integer stride"),
        (["--steps", "0"], "between 1 and T"),
        (["--steps", "-5"], "between 1 and T = 12 timesteps, got n = -5"),
        (["--device", "gpu"], "expected cpu, cuda, cuda:1, mps or another of torch's, got 'gpu'"),
        (["--variance", "/no/such/file"], "/no/such/file"),
    ],
)
def test_wrong_values_are_one_line(
    model: str, tmp_path: Path, arguments: list[str], message: str
) -> None:
    assert message in fails("sample", "-m", model, "-n", 1, "-o", tmp_path / "out", *arguments)
    assert STEPS > 7
