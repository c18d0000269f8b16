"""The command line as a user meets it: results, going on after a stop, and one-line errors."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from fastddpm.checkpoint import builtin_names, from_pretrained, save_pretrained
from fastddpm.cli import app, doctor, sample_folder
from fastddpm.cli.progress import Bar
from fastddpm.diffusion import GaussianDiffusion
from fastddpm.sampler import Sampler, from_uint8, image_grid, load_png, save_png, to_uint8
from fastddpm.schedule import NoiseSchedule
from fastddpm.timesteps import linspace
from fastddpm.unet import UNet, UNetConfig

STEPS = 12
CONFIG = UNetConfig(
    sample_size=8,
    in_channels=1,
    out_channels=1,
    block_out_channels=(8, 8),
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    layers_per_block=1,
    norm_num_groups=4,
    attention_head_dim=None,
)


def small_unet(**fields: Any) -> UNet:
    torch.manual_seed(1)
    unet = UNet(UNetConfig.from_dict(CONFIG.to_dict() | fields))
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return unet


def save(folder: Path, unet: UNet) -> str:
    save_pretrained(folder, unet, GaussianDiffusion(NoiseSchedule.linear(STEPS, 1e-3, 0.3)))
    return str(folder)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("cli") / "model", small_unet())


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def succeeds(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return str(result.output)


def fails(*arguments: object, code: int = 1) -> str:
    """The command fails with one line on stderr."""
    result = run(*arguments)
    assert result.exit_code == code, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("fastddpm: ")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.output
    return str(lines[0])


def samples_of(folder: Path) -> Any:
    with np.load(folder / "samples.npz") as arrays:
        return arrays["samples"]


def expected(model: str, count: int, seed: int = 0) -> Any:
    return to_uint8(Sampler(*from_pretrained(model)).sample(count, seed, batch_size=4)).numpy()


# ---- sample


def test_sample_writes_images_grid_and_settings(model: str, tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    succeeds("sample", "-m", model, "-n", 7, "--seed", 3, "--batch-size", 4, "-o", out)
    assert sorted(path.name for path in out.iterdir()) == [
        "samples.npz",
        "samples.png",
        "settings.json",
    ]
    samples = samples_of(out)
    assert samples.shape == (7, 8, 8, 1) and samples.dtype == np.uint8
    assert np.array_equal(samples, expected(model, 7, 3))
    settings = json.loads((out / "settings.json").read_text())
    assert (settings["num"], settings["seed"], settings["steps"]) == (7, 3, STEPS)
    with Image.open(out / "samples.png") as grid:
        pixels = np.asarray(grid)
    # Three columns of 8 pixels with gaps of 2; image 4 stands in the middle.
    assert pixels.shape == (32, 32)
    assert np.array_equal(pixels[12:20, 12:20], samples[4, :, :, 0])


def test_the_default_is_a_picture_an_image_only_if_asked(model: str, tmp_path: Path) -> None:
    succeeds("sample", "-m", model, "-n", 3, "--format", "png", "-o", tmp_path / "out")
    files = sorted((tmp_path / "out" / "images").iterdir())
    assert [file.name for file in files] == ["000000.png", "000001.png", "000002.png"]
    samples = samples_of(tmp_path / "out")
    assert all(np.array_equal(load_png(f, 1), s) for f, s in zip(files, samples, strict=True))


def test_fewer_steps_are_the_respaced_chain(model: str, tmp_path: Path) -> None:
    succeeds("sample", "-m", model, "-n", 2, "--steps", 5, "-o", tmp_path / "out")
    unet, diffusion = from_pretrained(model)
    schedule = diffusion.schedule.respace(linspace(STEPS, 5))
    fewer = GaussianDiffusion(schedule, diffusion.prediction, diffusion.variance)
    assert np.array_equal(
        samples_of(tmp_path / "out"), to_uint8(Sampler(unet, fewer).sample(2)).numpy()
    )


def test_labels_go_round(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", small_unet(num_class_embeds=3))
    succeeds("sample", "-m", folder, "-n", 5, "--labels", "2,0", "-o", tmp_path / "out")
    with np.load(tmp_path / "out" / "samples.npz") as arrays:
        assert arrays["labels"].tolist() == [2, 0, 2, 0, 2]
    assert "needs labels" in fails("sample", "-m", folder, "-n", 1, "-o", tmp_path / "other")


def test_a_finished_job_is_left_alone(model: str, tmp_path: Path) -> None:
    arguments = ("sample", "-m", model, "-n", 2, "-o", tmp_path)
    succeeds(*arguments)
    before = (tmp_path / "samples.npz").stat().st_mtime_ns
    assert "already holds" in succeeds(*arguments)
    assert (tmp_path / "samples.npz").stat().st_mtime_ns == before


def test_other_settings_do_not_touch_what_is_there(model: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    succeeds("sample", "-m", model, "-n", 2, "-o", out)
    before = samples_of(out)
    assert "(seed)" in fails("sample", "-m", model, "-n", 2, "--seed", 1, "-o", out)
    other = save(tmp_path / "model", small_unet(layers_per_block=2))
    assert "weights_sha256" in fails("sample", "-m", other, "-n", 2, "-o", out)
    assert np.array_equal(samples_of(out), before)
    succeeds("sample", "-m", model, "-n", 2, "--seed", 1, "-o", out, "--overwrite")
    assert np.array_equal(samples_of(out), expected(model, 2, 1))


def test_samples_of_unknown_origin_are_kept(model: str, tmp_path: Path) -> None:
    (tmp_path / "samples.npz").write_bytes(b"mine")
    assert "no settings.json" in fails("sample", "-m", model, "-n", 1, "-o", tmp_path)
    assert (tmp_path / "samples.npz").read_bytes() == b"mine"


def test_a_full_disk_keeps_whole_shards_and_the_same_command_goes_on(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    arguments = ("sample", "-m", model, "-n", 6, "--batch-size", 2, "-o", out)
    written = []

    def fsync(fd: int) -> None:
        written.append(fd)
        # Settings and the first shard find room.
        if len(written) > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(sample_folder.os, "fsync", fsync)
        assert "the disk is full" in fails(*arguments)
    assert [path.name for path in (out / "shards").iterdir()] == ["00000000-00000002.npz"]
    made = []
    sample = Sampler.sample

    def recorded(self: Sampler, *args: Any, **kwargs: Any) -> Any:
        made.append(kwargs["indices"])
        return sample(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Sampler, "sample", recorded)
        succeeds(*arguments)
    assert made == [range(2, 4), range(4, 6)]
    assert np.array_equal(samples_of(out), expected(model, 6))
    assert not (out / "shards").exists()


def test_interrupted_sampling_goes_on(model: str, tmp_path: Path) -> None:
    """A real process, a real SIGINT, and the same command again."""
    out = tmp_path / "out"
    options = ["-m", model, "-n", "40", "--batch-size", "1", "-o", str(out)]
    command = [sys.executable, "-m", "fastddpm", "sample", *options]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list((out / "shards").glob("*.npz")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    done = len(list((out / "shards").glob("*.npz")))
    assert 0 < done < 40 and f"{done} of 40 images are done" in errors
    assert not list(out.rglob("*.partial"))
    succeeds("sample", *options)
    whole = to_uint8(Sampler(*from_pretrained(model)).sample(40, batch_size=1)).numpy()
    assert np.array_equal(samples_of(out), whole)


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
        (["--engine", "compile"], "not built yet"),
        (["--engine", "warp"], "engine is one of"),
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
    for arguments in (["--num", "0"], ["--seed", "-1"], ["--nonsense"], ["--num", "many"]):
        result = run("sample", "-m", model, *arguments)
        assert result.exit_code == 2
        assert arguments[0] in result.output


def test_an_output_that_cannot_be_made(model: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in fails("sample", "-m", model, "-o", tmp_path / "file" / "out")


def test_debug_shows_the_traceback(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("sample", "-m", model, "--engine", "compile")
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
    sampler = Sampler(*from_pretrained(model))
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
    images = Sampler(*from_pretrained(model)).interpolate(a, b, 3, [0, 1 / 3, 2 / 3, 1])
    assert torch.equal(load_png(out, 1), image_grid(to_uint8(images), columns=4))


def test_interpolate_refuses_what_does_not_fit(model: str, tmp_path: Path) -> None:
    save_png(tmp_path / "wide.png", torch.zeros(8, 9, 1, dtype=torch.uint8))
    (tmp_path / "text.png").write_text("no picture")
    common = ("-m", model, "--t", 3, "-o", tmp_path / "row.png")
    assert "9 x 8 pixels" in fails("interpolate", tmp_path / "wide.png", 0, *common)
    assert "text.png" in fails("interpolate", tmp_path / "text.png", 0, *common)
    assert "none.png" in fails("interpolate", tmp_path / "none.png", 0, *common)
    assert "--lambdas" in fails("interpolate", 0, 1, *common, "--lambdas", "half")
    assert "0 to 11" in fails("interpolate", 0, 1, "-m", model, "-o", tmp_path / "row.png")


# ---- doctor


def test_doctor_reports() -> None:
    result = run("doctor")
    report = dict(line.split("  ", 1) for line in result.output.splitlines())
    assert set(report) >= {"python", "torch", "CPU library", "GPU", "built-in model", "noise"}
    assert torch.__version__.split("+")[0] in report["torch"]
    broken = [name for name, says in report.items() if "BROKEN" in says]
    assert broken == [] if builtin_names() else broken == ["built-in model"]
    assert result.exit_code == (1 if broken else 0)


def test_doctor_finds_a_broken_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    # The answer for words of all ones cannot be that for zeros.
    answers = dict.fromkeys(doctor.KNOWN_ANSWERS, next(iter(doctor.KNOWN_ANSWERS.values())))
    monkeypatch.setattr(doctor, "KNOWN_ANSWERS", answers)
    result = run("doctor")
    assert result.exit_code == 1
    assert "BROKEN: Philox" in result.output


# ---- images and progress


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
