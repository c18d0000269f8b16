"""The command line as a user meets it: one-line errors, pictures between pictures, help."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_runs import (
    STEPS,
    fails,
    run,
    sampler_of,
    save,
    small_unet,
    succeeds,
)

from fastddpm.cli import doctor
from fastddpm.cli.progress import Bar
from fastddpm.sampler import Sampler, from_uint8, image_grid, load_png, save_png, to_uint8


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("cli") / "model", small_unet())


# ---- errors


def test_a_truncated_checkpoint(tmp_path: Path) -> None:
    folder = Path(save(tmp_path / "model", small_unet()))
    weights = folder / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "truncated" in fails("sample", "-m", folder, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_mismatched_checkpoint(tmp_path: Path) -> None:
    folder = Path(save(tmp_path / "model", small_unet()))
    config = json.loads((folder / "config.json").read_text())
    config["layers_per_block"] = 2
    (folder / "config.json").write_text(json.dumps(config))
    fails("sample", "-m", folder, "-o", tmp_path / "out")


def test_nan_in_the_chain(tmp_path: Path) -> None:
    unet = small_unet()
    with torch.no_grad():
        unet.conv_out.bias.fill_(float("nan"))
    folder = save(tmp_path / "model", unet)
    assert f"at timestep {STEPS - 1} " in fails("sample", "-m", folder, "-o", tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "cpu", "--dtype", "bfloat16"], "it computes in float32"),
        (["--engine", "warp"], "engine is one of"),
        (["--engine", "reference", "--threads", "2"], "engine='reference' was asked for"),
        (["--engine", "compile", "--memory", "speed"], "engine='compile' was asked for"),
        (["--dtype", "bfloat16", "--weights", "float16"], "it computes in float32"),
        (["--weights", "int8"], "weights must be one of float32, float16"),
        (["--memory", "huge"], "memory must be one of small, speed"),
        (["--weights", "float16", "--memory", "speed"], "no float16 form"),
        (["--dtype", "int8"], "--dtype"),
        (["--format", "gif"], "--format"),
        (["--labels", "a,b"], "--labels"),
        (["--steps", "13"], "13"),
        (["--spacing", "odd", "--steps", "3"], "spacing"),
        (["--device", "nowhere"], "nowhere"),
        (["--labels", "1"], "takes no labels"),
        (["--model", "no-such-model"], "no-such-model"),
    ],
)
def test_wrong_values_are_one_line(
    model: str, tmp_path: Path, arguments: list[str], message: str
) -> None:
    assert message in fails("sample", "-m", model, "-n", 1, "-o", tmp_path / "out", *arguments)


def test_wrong_options_are_usage_errors(model: str) -> None:
    for arguments in (
        ["--num", "0"],
        ["--seed", "-1"],
        ["--threads", "0"],
        ["--nonsense"],
        ["--num", "many"],
    ):
        result = run("sample", "-m", model, *arguments)
        assert result.exit_code == 2
        assert arguments[0] in result.output


def test_an_output_that_cannot_be_made(model: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in fails("sample", "-m", model, "-o", tmp_path / "file" / "out")


def test_debug_shows_the_traceback(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("sample", "-m", model, "--engine", "warp")
    assert isinstance(run("--debug", *arguments).exception, ValueError)
    monkeypatch.setenv("FASTDDPM_DEBUG", "1")
    assert isinstance(run(*arguments).exception, ValueError)


def test_ctrl_c_anywhere_is_130(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Sampler, "__init__", stop)
    assert "stopped" in fails("sample", "-m", model, code=130)


def test_errors_of_our_own_making_are_not_hidden(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise TypeError("ours")

    monkeypatch.setattr(Sampler, "__init__", broken)
    assert isinstance(run("sample", "-m", model).exception, TypeError)


@pytest.mark.parametrize("command", ["sample", "interpolate", "doctor"])
def test_help(command: str) -> None:
    assert "Usage" in succeeds(command, "--help")
    assert command in succeeds("--help")


# ---- interpolate


def test_interpolate_between_samples(model: str, tmp_path: Path) -> None:
    out = tmp_path / "row.png"
    succeeds(
        *("interpolate", 0, 5, "-m", model, "--t", 8, "--lambdas", "0,0.5,1", "--seed", 2),
        *("-o", out),
    )
    sampler = sampler_of(model)
    a, b = (sampler.sample(indices=[i], seed=2)[0] for i in (0, 5))
    row = image_grid(to_uint8(sampler.interpolate(a, b, 8, [0, 0.5, 1], 2)), columns=3)
    assert torch.equal(load_png(out, 1), row)
    settings = json.loads(out.with_suffix(".json").read_text())
    assert (settings["t"], settings["lambdas"]) == (8, [0, 0.5, 1])
    assert "exists" in fails("interpolate", 0, 1, "-m", model, "--t", 2, "-o", out)


def test_interpolate_between_pictures(model: str, tmp_path: Path) -> None:
    pictures = torch.randint(0, 256, (2, 8, 8, 1), dtype=torch.uint8)
    for name, picture in zip("ab", pictures, strict=True):
        save_png(tmp_path / f"{name}.png", picture)
    out = tmp_path / "row.png"
    succeeds(
        *("interpolate", tmp_path / "a.png", tmp_path / "b.png", "-m", model, "--t", 3),
        *("--lambdas", 4, "-o", out),
    )
    a, b = from_uint8(pictures)
    images = sampler_of(model).interpolate(a, b, 3, [0, 1 / 3, 2 / 3, 1])
    assert torch.equal(load_png(out, 1), image_grid(to_uint8(images), columns=4))


def test_interpolate_between_samples_of_a_class(tmp_path: Path) -> None:
    model, out = save(tmp_path / "model", small_unet(num_class_embeds=3)), tmp_path / "row.png"
    succeeds(*("interpolate", 0, 1, "-m", model, "--t", 5, "--lambdas", 2, "--label", 2, "-o", out))
    sampler = sampler_of(model)
    a, b = (sampler.sample(indices=[i], labels=2)[0] for i in (0, 1))
    images = sampler.interpolate(a, b, 5, [0, 1], labels=2)
    assert torch.equal(load_png(out, 1), image_grid(to_uint8(images), columns=2))


def test_interpolate_writes_over_nothing_that_it_did_not_write(model: str, tmp_path: Path) -> None:
    (tmp_path / "row.json").write_text("mine")
    common = ("interpolate", 0, 1, "-m", model, "--t", 2, "-o", tmp_path / "row.png")
    assert "row.json exists" in fails(*common)
    assert (tmp_path / "row.json").read_text() == "mine"
    succeeds(*common, "--overwrite")
    assert json.loads((tmp_path / "row.json").read_text())["t"] == 2
    said = fails("interpolate", 0, 1, "-m", model, "--t", 2, "-o", tmp_path / "no" / "i7")
    assert "--out must end in .png, got" in said and not (tmp_path / "no").exists()


def test_interpolate_says_how_to_go_on_after_ctrl_c(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Sampler, "interpolate", stop)
    result = run("interpolate", 0, 1, "-m", model, "--t", 2, "-o", tmp_path / "row.png")
    assert result.exit_code == 130
    assert "nothing was written; the same command starts again" in result.stderr
    assert not list(tmp_path.iterdir())


def test_interpolate_refuses_what_does_not_fit(model: str, tmp_path: Path) -> None:
    save_png(tmp_path / "wide.png", torch.zeros(8, 9, 1, dtype=torch.uint8))
    (tmp_path / "text.png").write_text("no picture")
    common = ("-m", model, "--t", 3, "-o", tmp_path / "row.png")
    assert "9 x 8 pixels" in fails("interpolate", tmp_path / "wide.png", 0, *common)
    assert "text.png" in fails("interpolate", tmp_path / "text.png", 0, *common)
    assert "none.png" in fails("interpolate", tmp_path / "none.png", 0, *common)
    # A digit to str.isdigit, but no number: taken for a file's name.
    assert "²" in fails("interpolate", 0, "²", *common)
    assert "--lambdas" in fails("interpolate", 0, 1, *common, "--lambdas", "half")
    assert "0 to 11" in fails("interpolate", 0, 1, "-m", model, "-o", tmp_path / "row.png")


# ---- doctor


def test_doctor_reports() -> None:
    result = run("doctor")
    report = dict(line.split("  ", 1) for line in result.output.splitlines())
    assert set(report) >= {"python", "torch", "CPU library", "GPU", "built-in model", "noise"}
    assert torch.__version__.split("+")[0] in report["torch"]
    broken = [name for name, says in report.items() if "BROKEN" in says]
    assert broken == []
    assert result.exit_code == 0


def test_doctor_finds_a_broken_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    # The answer for words of all ones cannot be that for zeros.
    answers = dict.fromkeys(doctor.KNOWN_ANSWERS, next(iter(doctor.KNOWN_ANSWERS.values())))
    monkeypatch.setattr(doctor, "KNOWN_ANSWERS", answers)
    result = run("doctor")
    assert result.exit_code == 1
    assert "BROKEN: Philox" in result.output


# ---- images and progress


def test_bytes_of_any_number_of_dimensions() -> None:
    for shape in ((2, 3, 5), (2, 1, 2, 3, 4)):
        x = torch.linspace(-1, 1, math.prod(shape)).reshape(shape)
        levels = to_uint8(x)
        assert levels.shape == (shape[0], *shape[2:], shape[1]) and levels.is_contiguous()
        assert torch.equal(levels.movedim(-1, 1), ((x + 1) * 127.5).round().to(torch.uint8))
    with pytest.raises(ValueError, match="expected images"):
        to_uint8(torch.zeros(3, 4))


def test_bytes_are_rounded_and_clipped() -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1)
    assert torch.equal(to_uint8(from_uint8(levels)), levels)
    x = torch.tensor([-1.1, -1, 0.49 / 127.5 - 1, 0.51 / 127.5 - 1, 1, 1.1]).reshape(1, 1, 1, 6)
    assert to_uint8(x).flatten().tolist() == [0, 0, 0, 1, 255, 255]


def test_progress_shows_after_two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("fastddpm.cli.progress.time.monotonic", lambda: now[0])
    with Bar("work", 10) as bar:
        bar.advance()
        assert not bar._shown
        now[0] = 2.5
        bar.advance()
        assert bar._shown
