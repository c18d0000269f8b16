"""``fastddpm evaluate nll`` and ``rate-distortion``: what they write, keep and refuse."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_runs import STEPS, fails, run, save, small_unet, succeeds

from fastddpm.checkpoint import from_pretrained
from fastddpm.cli import evaluate_bound
from fastddpm.evaluation import Bound, DataSetBound, RateDistortion, bound_of_data

NUM = 10


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("cli") / "model", small_unet())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "images.npz"
    np.savez(path, images=levels())
    return path


def levels() -> Any:
    return np.random.RandomState(0).randint(256, size=(NUM, 8, 8, 1)).astype(np.uint8)


def expected(model: str, count: int = NUM, **how: Any) -> DataSetBound:
    unet, diffusion = from_pretrained(model)
    bound = Bound(unet.to(memory_format=torch.channels_last), diffusion, decoder="erf")
    images = torch.from_numpy(levels()[:count].transpose(0, 3, 1, 2).copy())
    return bound_of_data(bound, images, 3, **how)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def found_in(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


ASKED = ("--seed", 3, "--part-size", 4, "--decoder", "erf")


def test_nll(model: str, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    given = ("evaluate", "nll", "-m", model, "--data", data, *ASKED, "-o", out)
    said = succeeds(*given)
    assert names(out) == ["nll.csv", "nll.json", "nll.png", "settings.json"]
    whole, found = expected(model), found_in(out, "nll.json")
    assert found["bits_per_dim"] == pytest.approx(whole.bits_per_dim, rel=1e-6)
    assert found["interval_95"] == pytest.approx(whole.interval, rel=1e-5)
    assert (found["images"], found["timesteps"]) == (NUM, STEPS)
    assert f"{whole.bits_per_dim:.3f}" in said
    settings = found_in(out, "settings.json")
    assert (settings["num"], settings["seed"], settings["decoder"]) == (NUM, 3, "erf")
    assert "already holds" in succeeds(*given)


def test_rate_distortion(model: str, data: Path, tmp_path: Path) -> None:
    given = ("evaluate", "rate-distortion", "-m", model, "--data", data, *ASKED, "-n", 7)
    succeeds(*given, "-o", tmp_path)
    assert names(tmp_path) == [
        "rate_distortion.csv",
        "rate_distortion.json",
        "rate_distortion.png",
        "settings.json",
    ]
    curve = RateDistortion.of(expected(model, 7))
    with (tmp_path / "rate_distortion.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["reverse_step"]) for row in rows] == list(range(1, STEPS + 1))
    rate, rmse = ([float(r[k]) for r in rows] for k in ("rate_bits_per_dim", "rmse_0_to_255"))
    assert rate == pytest.approx(curve.rate.tolist(), rel=1e-5)
    assert rmse == pytest.approx(curve.rmse.tolist(), rel=1e-5)


def test_a_subset_of_the_timesteps(model: str, data: Path, tmp_path: Path) -> None:
    succeeds(
        "evaluate", "nll", "-m", model, "--data", data, *ASKED, "--timesteps", 4, "-o", tmp_path
    )
    whole = expected(model, timesteps=4)
    assert found_in(tmp_path, "nll.json")["bits_per_dim"] == pytest.approx(whole.bits_per_dim)


def test_it_goes_on_where_it_stopped(
    model: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("evaluate", "nll", "-m", model, "--data", data, *ASKED, "-o")
    succeeds(*given, tmp_path / "whole")
    own, done = evaluate_bound.bounds_of_parts, []
    rows: list[int | None] = []

    class Noted(Bound):
        def __init__(self, *given: Any, batch_size: int | None, **named: Any) -> None:
            rows.append(batch_size)
            super().__init__(*given, batch_size=batch_size, **named)

    monkeypatch.setattr(evaluate_bound, "Bound", Noted)

    def stopped(*arguments: Any, **named: Any) -> Iterator[tuple[range, DataSetBound]]:
        for part, sums in own(*arguments, **named):
            if done:
                raise KeyboardInterrupt
            done.append(part)
            yield part, sums

    monkeypatch.setattr(evaluate_bound, "bounds_of_parts", stopped)
    result = run(*given, tmp_path / "parts")
    assert result.exit_code == 130
    assert "4 of 10 images are done" in result.stderr
    assert names(tmp_path / "parts" / "parts") == ["00000000-00000004.npz"]

    def watched(*arguments: Any, parts: list[range], **named: Any) -> Any:
        done.extend(parts)
        return own(*arguments, parts=parts, **named)

    monkeypatch.setattr(evaluate_bound, "bounds_of_parts", watched)
    other = fails(*given, tmp_path / "parts", "--seed", 4)
    assert "seed" in other and "--overwrite" in other
    assert "part_size" in fails(*given, tmp_path / "parts", "--part-size", 5)
    # How many rows run at once is no part of what is computed.
    succeeds(*given, tmp_path / "parts", "--batch-size", 7)
    assert rows[-1] == 7
    assert done == [range(0, 4), range(4, 8), range(8, 10)]
    for name in ("nll.json", "nll.csv"):
        one, two = (tmp_path / folder / name for folder in ("whole", "parts"))
        assert one.read_bytes() == two.read_bytes()
    assert not (tmp_path / "parts" / "parts").exists()


def test_only_its_own_results_are_replaced(model: str, data: Path, tmp_path: Path) -> None:
    given = ("evaluate", "nll", "-m", model, "--data", data, "-n", 2, "-o", tmp_path)
    (tmp_path / "nll.csv").write_text("mine")
    assert "tells its origin" in fails(*given, "--overwrite")
    (tmp_path / "nll.csv").unlink()
    succeeds(*given)
    (tmp_path / "notes.txt").write_text("mine")
    assert "seed" in fails(*given, "--seed", 1)
    succeeds(*given, "--seed", 1, "--overwrite")
    assert found_in(tmp_path, "settings.json")["seed"] == 1
    assert (tmp_path / "notes.txt").read_text() == "mine"
    curve = ("evaluate", "rate-distortion", "-m", model, "--data", data, "-o", tmp_path)
    assert "was not written by" in fails(*curve, "--overwrite")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--num", 11), "holds 10 images"),
        (("--decoder", "logistic"), "tanh, erf"),
        (("--timesteps", STEPS), f"1 to {STEPS - 1}"),
        (("--pad-to", 10), "the model makes"),
        (("--data", "nowhere.npz"), "no such file"),
        (("--dtype", "int8"), "--dtype"),
        (("--engine", "fast"), "engine is one of"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_mistakes_are_told_before_the_work(
    model: str, data: Path, tmp_path: Path, change: tuple[Any, ...], message: str
) -> None:
    out = tmp_path / "out"
    given = ("evaluate", "nll", "-m", model, "--data", data, "-o", out)
    assert message in fails(*given, *change)
    assert not out.exists()


def test_a_curve_of_few_images_and_timesteps(model: str, data: Path, tmp_path: Path) -> None:
    given = ("evaluate", "rate-distortion", "-m", model, "--data", data, "--timesteps", 3)
    assert "images or more" in fails(*given, "-o", tmp_path / "out")


def test_a_model_of_classes_takes_the_datas(tmp_path: Path) -> None:
    classes = {"class_embed_type": None, "num_class_embeds": 3}
    model = save(tmp_path / "model", small_unet(**classes))
    np.savez(tmp_path / "plain.npz", images=levels())
    labels = np.arange(NUM) % 3
    np.savez(tmp_path / "labelled.npz", images=levels(), labels=labels)
    given = ("evaluate", "nll", "-m", model, *ASKED, "-o", tmp_path / "out", "--data")
    assert "tells none" in fails(*given, tmp_path / "plain.npz")
    succeeds(*given, tmp_path / "labelled.npz")
    whole = expected(model, labels=torch.from_numpy(labels))
    found = found_in(tmp_path / "out", "nll.json")["bits_per_dim"]
    assert found == pytest.approx(whole.bits_per_dim, rel=1e-6)
