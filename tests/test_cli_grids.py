"""The commands that draw grids: what they draw, what lies beside it, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_runs import fails, run, sampler_of, save, small_unet, succeeds

from fastddpm import Sampler
from fastddpm.sampler import image_grid, load_png, to_uint8


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("grids") / "model", small_unet(num_class_embeds=3))


def drawn(rows: torch.Tensor) -> torch.Tensor:
    """The grid of images [R, N, C, H, W]."""
    return image_grid(to_uint8(rows.flatten(0, 1)), columns=rows.shape[1])


def settings_of(out: Path) -> Any:
    return json.loads(out.with_suffix(".json").read_text())


@pytest.mark.parametrize(
    ("arguments", "columns", "options", "left"),
    [
        ([], 4, {}, [9, 6, 3, 0]),
        # Twelve steps do not go into five: the last column is the image all the same.
        ([], 5, {}, [9, 6, 3, 0]),
        ([], 100, {}, list(range(11, -1, -1))),
        (
            ["--steps", 6, "--method", "langevin", "--corrections", 2],
            3,
            {"steps": 6, "method": "langevin", "corrections": 2},
            [12, 6, 0],
        ),
    ],
)
def test_progressive_draws_the_chains_estimates(
    model: str,
    tmp_path: Path,
    arguments: list[Any],
    columns: int,
    options: dict[str, Any],
    left: list[int],
) -> None:
    out = tmp_path / "progressive.png"
    command = ["progressive", "-m", model, "-n", 3, "--seed", 2, "--label", 1, "-o", out]
    succeeds(*command, "--columns", columns, *arguments)
    sampler = sampler_of(model)
    steps = {step.t: step.x_0 for step in sampler.stream(3, 2, 1, labels=1, **options)}
    expected = torch.stack([steps[t] for t in left], dim=1)
    assert torch.equal(load_png(out, 1), drawn(expected))
    assert torch.equal(steps[0], sampler.sample(3, 2, labels=1, **options))
    held = settings_of(out)
    assert held["steps_to_go"] == left and held["command"] == "fastddpm progressive"
    assert {name: held[name] for name in options} == options
    assert "exists" in fails(*command)


def test_interpolation_at_several_steps(model: str, tmp_path: Path) -> None:
    out = tmp_path / "grid.png"
    command = ["interpolate", 0, 5, "-m", model, "--label", 2, "--lambdas", "0,0.5,1", "-o", out]
    succeeds(*command, "--t", "3,8,0")
    sampler = sampler_of(model)
    a, b = (sampler.sample(indices=[i], labels=2)[0] for i in (0, 5))
    rows = sampler.interpolate(a, b, [3, 8, 0], [0, 0.5, 1], labels=2)
    assert torch.equal(load_png(out, 1), drawn(rows))
    assert settings_of(out)["t"] == [3, 8, 0]
    for wrong in ("3,12", "-1", "3,,4", "half"):
        message = fails(*command, "--overwrite", "--t", wrong)
        assert "--t is a step index from 0 to 11, or several as 1,2; got" in message


def test_branches_of_a_chain(model: str, tmp_path: Path) -> None:
    out = tmp_path / "branches.png"
    command = ["branches", 3, "-m", model, "--label", 1, "--seed", 4, "-n", 2, "-o", out]
    succeeds(*command, "--t", "8,3")
    found = sampler_of(model).branches(3, [8, 3], 2, 4, labels=1)
    expected = drawn(torch.cat([found.x_t[:, None], found.images], dim=1))
    assert torch.equal(load_png(out, 1), expected)
    held = settings_of(out)
    assert (held["index"], held["t"], held["num"], held["seed"]) == (3, [8, 3], 2, 4)
    assert "exists" in fails(*command)
    assert "--t is a step index" in fails(*command, "--overwrite", "--t", "12")


@pytest.mark.parametrize(("command", "call"), [("progressive", "stream"), ("branches", "branches")])
def test_ctrl_c_leaves_nothing(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, call: str
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Sampler, call, stop)
    how = ["--t", 3] if command == "branches" else []
    result = run(command, "-m", model, "--label", 1, *how, "-o", tmp_path / "grid.png")
    assert result.exit_code == 130
    assert "nothing was written; the same command starts again" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["progressive", "branches"])
def test_samples_that_are_no_pictures(tmp_path: Path, command: str) -> None:
    kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    model = save(tmp_path / "model", small_unet(dims=1, **kinds))
    assert "pictures" in fails(command, "-m", model, "-o", tmp_path / "grid.png")
    assert "must end in .png" in fails(command, "-m", model, "-o", tmp_path / "grid.gif")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_picture_is_read_before_an_image_is_sampled(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("sampled")

    monkeypatch.setattr(Sampler, "sample", never)
    command = ["interpolate", 0, tmp_path / "missing.png", "-m", model, "-t", 3]
    message = fails(*command, "--label", 1, "-o", tmp_path / "out.png")
    assert "missing.png" in message and "sampled" not in message
