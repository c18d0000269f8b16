"""``fastddpm evaluate frechet``: its figure, its files, and how it goes on after it was stopped."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_runs import fails, run, samples_of, save, small_unet, succeeds

from fastddpm.cli import evaluate_frechet
from fastddpm.evaluation import (
    ImageFile,
    MnistFeatures,
    fidelity,
    frechet_distance,
    statistics_of,
)
from fastddpm.sampler.images import as_pixels


def digits(count: int, seed: int) -> torch.Tensor:
    """Blurred noise, [count, 1, 28, 28] in [-1, 1]: what the features tell apart will do."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, 1, 28, 28, generator=generator)
    return torch.tanh(3 * torch.nn.functional.avg_pool2d(noise, 5, 1, 2) + 0.1 * seed)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("images")
    kept = {"samples": folder / "samples.npz", "data": folder / "data.npz"}
    np.savez(kept["samples"], samples=as_pixels(digits(300, 1), "float").numpy())
    np.savez(kept["data"], images=as_pixels(digits(260, 2), "round").numpy())
    return kept


def expected(files: dict[str, Path], policy: str) -> float:
    one, other = (
        statistics_of(MnistFeatures(), ImageFile(files[name], policy).batches(1000))
        for name in ("samples", "data")
    )
    return frechet_distance(one, other)


def result(folder: Path) -> Any:
    return json.loads((folder / "frechet.json").read_text())


def test_the_distance_under_each_policy(files: dict[str, Path], tmp_path: Path) -> None:
    found = {}
    for policy in ("round", "truncate", "float"):
        out = tmp_path / policy
        how = ["--policy", policy, "--part-size", 64, "-o", out]
        output = succeeds("evaluate", "frechet", files["samples"], "--data", files["data"], *how)
        assert result(out) == {
            "frechet_distance": pytest.approx(expected(files, policy), rel=1e-5),
            **{"samples": 300, "data": 260, "features": "mnist", "policy": policy},
        }
        assert f"frechet_distance: {result(out)['frechet_distance']:.6g}" in output
        found[policy] = result(out)["frechet_distance"]
        assert not (out / "parts").exists()
        assert (out / "frechet.png").read_bytes().startswith(b"\x89PNG")
    assert len(set(found.values())) == 3


def test_kept_statistics_stand_for_the_data(files: dict[str, Path], tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    command = ["evaluate", "frechet", files["samples"]]
    succeeds(*command, "--data", files["data"], "-o", first)
    succeeds(*command, "--data", first / "data.safetensors", "-o", second)
    assert result(second) == result(first)
    again = succeeds(*command, "--data", first / "data.safetensors", "-o", second)
    assert "already holds this result" in again
    other = fails(*command, "--data", files["data"], "-o", second)
    assert "other settings (data_sha256)" in other


def test_it_goes_on_where_it_was_stopped(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["evaluate", "frechet", files["samples"], "--data", files["data"]]
    command += ["--part-size", 50, "-o", tmp_path / "stopped"]
    looked_at: list[int] = []

    class Counted(MnistFeatures):
        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            if len(looked_at) == 9:
                raise OSError("the disk is gone")
            looked_at.append(len(images))
            return super().__call__(images)

    monkeypatch.setattr(evaluate_frechet, "MnistFeatures", Counted)
    # Six parts of the data and three of the samples are kept.
    assert "the disk is gone" in fails(*command)
    assert len(list((tmp_path / "stopped/parts").iterdir())) == 9
    looked_at.clear()
    succeeds(*command)
    assert looked_at == [50, 50, 50]
    monkeypatch.undo()
    whole = tmp_path / "whole"
    succeeds(*command[:-1], whole)
    assert result(tmp_path / "stopped") == result(whole)


def test_a_part_that_was_lost_takes_its_own_images(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["evaluate", "frechet", files["samples"], "--data", files["data"]]
    command += ["--part-size", 50, "-o", tmp_path]

    def full(*_: Any, **__: Any) -> float:
        raise OSError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(evaluate_frechet, "frechet_distance", full)
        assert "the disk is full" in fails(*command)
    # The samples are images 0 to 299 of the folder, the data those from 300 on.
    for lost in ("00000050-00000100", "00000150-00000200", "00000300-00000350"):
        (tmp_path / f"parts/{lost}.npz").unlink()
    succeeds(*command)
    found = result(tmp_path)["frechet_distance"]
    assert found == pytest.approx(expected(files, "round"), rel=1e-5)


def test_ctrl_c_says_how_to_go_on(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(MnistFeatures, "__call__", stop)
    command = ["evaluate", "frechet", files["samples"], "--data", files["data"]]
    stopped = run(*command, "-o", tmp_path / "out")
    assert stopped.exit_code == 130 and "the same command goes on from there" in stopped.stderr


def test_what_cannot_be_told(files: dict[str, Path], tmp_path: Path) -> None:
    few = tmp_path / "few.npz"
    np.savez(few, samples=as_pixels(digits(100, 1), "round").numpy())
    command = ["evaluate", "frechet", few, "--data", files["data"]]
    message = fails(*command, "-o", tmp_path / "few")
    assert "of 100 samples in 128 dimensions is singular" in message
    succeeds(*command, "-o", tmp_path / "few", "--allow-singular")
    wrong = [
        (["--features", "lenet"], "--features is one of mnist, inception"),
        (["--policy", "floor"], "a policy in round, truncate, float"),
        (["--weights", few], "--weights are those of --features inception"),
        (["--device", "gpu"], "got 'gpu'"),
    ]
    for options, expected_message in wrong:
        assert expected_message in fails(*command, *options, "-o", tmp_path / "wrong")


def test_mistakes_are_told_before_the_work(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("there is work")

    monkeypatch.setattr(MnistFeatures, "__call__", never)
    monkeypatch.setattr(evaluate_frechet, "inception_metrics", never)
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    few, other, whole = tmp_path / "few.npz", tmp_path / "other.npz", files["samples"]
    np.savez(few, samples=np.zeros((128, 28, 28, 1), np.uint8))
    np.savez(other, samples=np.zeros((200, 8, 8, 2), np.uint8))
    inception = ["--features", "inception"]
    for one, two, options, message in (
        (few, whole, [], "of 128 samples in 128 dimensions is singular"),
        (whole, few, [], "of 128 samples in 128 dimensions is singular"),
        (other, whole, [], "images [1, 28, 28], got [2, 8, 8]"),
        (whole, other, [], "images [1, 28, 28], got [2, 8, 8]"),
        (whole, tmp_path / "nowhere.npz", [], "nowhere.npz"),
        (whole, whole, ["--device", "gpu"], "got 'gpu'"),
        (other, whole, inception, "C = 1 or 3; got [2, 8, 8]"),
        (whole, whole, [*inception, "--policy", "float"], "round or truncate them"),
        (whole, whole, inception, "need torch-fidelity"),
    ):
        out = tmp_path / "out"
        assert message in fails("evaluate", "frechet", one, "--data", two, *options, "-o", out)
        assert not out.exists(), message


def test_inception_is_given_the_files_bytes(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def metrics(samples: torch.Tensor, data: torch.Tensor, **how: Any) -> dict[str, float]:
        assert torch.equal(samples, ImageFile(files["samples"], "truncate").as_bytes())
        assert torch.equal(data, ImageFile(files["data"]).as_bytes())
        assert how["weights"] == Path("inception.pth") and how["batch_size"] == 7
        return {"frechet_inception_distance": 2.5}

    monkeypatch.setattr(evaluate_frechet, "inception_metrics", metrics)
    monkeypatch.setattr(fidelity, "required", lambda weights: None)
    command = ["evaluate", "frechet", files["samples"], "--data", files["data"]]
    command += ["--features", "inception", "--weights", "inception.pth", "--part-size", 7]
    succeeds(*command, "--policy", "truncate", "-o", tmp_path / "out")
    assert result(tmp_path / "out") == {
        **{"frechet_inception_distance": 2.5, "samples": 300, "data": 260},
        **{"features": "inception", "policy": "truncate"},
    }


def test_samples_are_kept_as_asked(tmp_path: Path) -> None:
    model = save(tmp_path / "model", small_unet())
    arrays = {}
    for pixels in ("round", "truncate", "float"):
        out = tmp_path / pixels
        how = ["--pixels", pixels, "--format", "png", "-o", out]
        succeeds("sample", "-m", model, "-n", 3, "--batch-size", 2, *how)
        arrays[pixels] = torch.from_numpy(samples_of(out))
        assert (out / "images/000002.png").exists()
    x = arrays["float"].movedim(-1, 1)
    assert x.dtype == torch.float32
    assert torch.equal(as_pixels(x, "round"), arrays["round"])
    assert torch.equal(as_pixels(x, "truncate"), arrays["truncate"])
    assert not torch.equal(arrays["round"], arrays["truncate"])
    other = fails("sample", "-m", model, "-n", 3, "--batch-size", 2, "-o", tmp_path / "float")
    assert "other settings" in other
    message = fails("sample", "-m", model, "--pixels", "floor", "-o", tmp_path / "floor")
    assert "--pixels is one of round, truncate, float" in message
