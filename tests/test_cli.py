"""The command line as a user meets it: results, going on after a stop, and one-line errors."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
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
from cpu_program.steps import needs_library
from PIL import Image
from typer.testing import CliRunner

from fastddpm import atomic
from fastddpm.checkpoint import from_pretrained, save_pretrained
from fastddpm.cli import app, doctor
from fastddpm.cli import model as models
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


def save(folder: Path, unet: UNet, schedule: NoiseSchedule | None = None) -> str:
    schedule = schedule or NoiseSchedule.linear(STEPS, 1e-3, 0.3)
    save_pretrained(folder, unet, GaussianDiffusion(schedule))
    return str(folder)


def sampler_of(model: str) -> Sampler:
    """The model's sampler, in the memory layout that the commands use, so that bytes agree."""
    unet, diffusion = from_pretrained(model)
    return Sampler(unet.to(memory_format=torch.channels_last), diffusion)


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
    return to_uint8(sampler_of(model).sample(count, seed, batch_size=4)).numpy()


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


@needs_library
def test_settings_of_the_cpu_engine(model: str, tmp_path: Path) -> None:
    """They are those of the sampler; what changes the images is in the settings."""
    own = ("--threads", 2, "--memory", "speed")
    output = succeeds("sample", "-m", model, "-n", 2, "-o", tmp_path / "fast", *own)
    assert "threads: 2; weights: float32; memory: speed" in output
    assert np.array_equal(samples_of(tmp_path / "fast"), expected(model, 2))
    half = ("sample", "-m", model, "-n", 2, "--weights", "float16", "-o", tmp_path / "half")
    assert "weights: float16; memory: small" in succeeds(*half)
    settings = json.loads((tmp_path / "half" / "settings.json").read_text())
    assert settings["weights"] == "float16"
    assert "weights" in fails("sample", "-m", model, "-n", 2, "-o", tmp_path / "half")


@needs_library
def test_interpolation_by_the_cpu_engine(model: str, tmp_path: Path) -> None:
    out = tmp_path / "between.png"
    own = ("--engine", "cpu", "--threads", 1, "--weights", "float16", "--lambdas", "0,1")
    succeeds("interpolate", 0, 1, "-m", model, "-t", 5, "-o", out, *own)
    assert json.loads(out.with_suffix(".json").read_text())["weights"] == "float16"
    refused = ("--engine", "reference", "--threads", 1, "-o", tmp_path / "other.png")
    assert "was asked for" in fails("interpolate", 0, 1, "-m", model, "-t", 5, *refused)


def test_the_default_is_a_picture_an_image_only_if_asked(model: str, tmp_path: Path) -> None:
    succeeds("sample", "-m", model, "-n", 3, "--format", "png", "-o", tmp_path / "out")
    files = sorted((tmp_path / "out" / "images").iterdir())
    assert [file.name for file in files] == ["000000.png", "000001.png", "000002.png"]
    samples = samples_of(tmp_path / "out")
    assert all(np.array_equal(load_png(f, 1), s) for f, s in zip(files, samples, strict=True))


def test_fewer_steps_are_the_respaced_chain(model: str, tmp_path: Path) -> None:
    succeeds("sample", "-m", model, "-n", 2, "--steps", 5, "-o", tmp_path / "out")
    full = sampler_of(model)
    fewer = Sampler(full.model, full.diffusion.respace(linspace(STEPS, 5)))
    assert np.array_equal(samples_of(tmp_path / "out"), to_uint8(fewer.sample(2)).numpy())


def test_a_respaced_model_is_respaced_again(tmp_path: Path) -> None:
    schedule = NoiseSchedule.linear(40, 1e-3, 0.2).respace(range(1, 40, 4))
    model = save(tmp_path / "model", small_unet(), schedule)
    succeeds("sample", "-m", model, "-n", 1, "--steps", 4, "-o", tmp_path / "out")
    full = sampler_of(model)
    fewer = Sampler(full.model, full.diffusion.respace([1, 13, 25, 37]))
    assert np.array_equal(samples_of(tmp_path / "out"), to_uint8(fewer.sample(1)).numpy())


def test_labels_go_round(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", small_unet(num_class_embeds=3))
    succeeds("sample", "-m", folder, "-n", 5, "--labels", "2,0", "-o", tmp_path / "out")
    with np.load(tmp_path / "out" / "samples.npz") as arrays:
        assert arrays["labels"].tolist() == [2, 0, 2, 0, 2]
    assert "needs labels" in fails("sample", "-m", folder, "-n", 1, "-o", tmp_path / "other")
    said = fails("sample", "-m", folder, "-n", 1, "--labels", 9, "-o", tmp_path / "other")
    assert "labels must lie in 0 to 2, got 9" in said


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


@pytest.mark.parametrize("extra", [(), ("--overwrite",)])
@pytest.mark.parametrize(
    "name", ["samples.npz", "samples.png", "images/000000.png", "shards/00000000-00000001.npz"]
)
def test_files_of_unknown_origin_are_kept(
    model: str, tmp_path: Path, name: str, extra: tuple[str, ...]
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"mine")
    options = ("sample", "-m", model, "-n", 1, "--format", "png", "-o", tmp_path, *extra)
    assert "no settings.json" in fails(*options)
    assert (tmp_path / name).read_bytes() == b"mine"


@pytest.mark.parametrize("extra", [(), ("--overwrite",)])
@pytest.mark.parametrize(
    "text", ["[1]", '"mine"', "{}", '{"seed": 0}', "{", "", "\x00", "[" * 9999]
)
def test_settings_that_are_not_ours_are_kept(
    model: str, tmp_path: Path, text: str, extra: tuple[str, ...]
) -> None:
    (tmp_path / "settings.json").write_text(text)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "000000.png").write_bytes(b"mine")
    said = fails("sample", "-m", model, "-n", 1, "-o", tmp_path, *extra)
    assert "settings.json was not written by fastddpm sample" in said
    assert (tmp_path / "settings.json").read_text() == text
    assert (tmp_path / "images" / "000000.png").read_bytes() == b"mine"


def test_overwrite_clears_what_the_command_wrote_and_nothing_else(
    model: str, tmp_path: Path
) -> None:
    mine = [tmp_path / "images" / name for name in ("cat.png", "000007.png", "00000.png")]
    mine += [tmp_path / "notes.txt", tmp_path / "shards" / "notes.txt"]
    succeeds("sample", "-m", model, "-n", 3, "--format", "png", "-o", tmp_path)
    (tmp_path / "shards").mkdir()
    for path in mine:
        path.write_bytes(b"mine")
    succeeds("sample", "-m", model, "-n", 1, "--seed", 4, "-o", tmp_path, "--overwrite")
    assert np.array_equal(samples_of(tmp_path), expected(model, 1, 4))
    assert all(path.read_bytes() == b"mine" for path in mine)
    left = {path for path in tmp_path.rglob("*") if path.is_file()} - set(mine)
    assert {path.name for path in left} == {"samples.npz", "samples.png", "settings.json"}


def test_a_clear_that_is_stopped_can_be_finished(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The settings, which tell what is ours, are the last to go."""
    options = ("sample", "-m", model, "-n", 1, "--format", "png", "-o", tmp_path, "--overwrite")
    succeeds(*options)
    unlink = Path.unlink

    def stopped(self: Path, missing_ok: bool = False) -> None:
        if self.name == "samples.npz":
            raise KeyboardInterrupt
        unlink(self, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", stopped)
        fails(*options, code=130)
    succeeds(*options)


def test_another_process_is_another_setting(tmp_path: Path) -> None:
    """Two schedules with the same ends and length look alike in print."""
    schedules = [
        make(STEPS, 1e-3, 0.3) for make in (NoiseSchedule.linear, NoiseSchedule.scaled_linear)
    ]
    for schedule in schedules:
        model = save(tmp_path / "model", small_unet(), schedule)
        out = ("sample", "-m", model, "-n", 1, "-o", tmp_path / "out")
        if schedule is schedules[0]:
            succeeds(*out)
        else:
            assert "diffusion_sha256" in fails(*out)


@pytest.mark.parametrize(
    "change",
    [
        {"prediction": "sample"},
        {"variance": "fixed_large"},
        {"clip": None},
        {"last_step_noise": "diffusers"},
        {"timestep_scale": 1.0},
        {"schedule": NoiseSchedule.linear(9).respace([0, 3, 8])},
        {"schedule": NoiseSchedule.from_betas(NoiseSchedule.linear(3).betas, [0, 1, 3])},
    ],
    ids=str,
)
def test_every_setting_of_a_process_is_in_its_digest(change: dict[str, Any]) -> None:
    diffusion = GaussianDiffusion(NoiseSchedule.linear(3))
    digest = models.diffusion_digest(diffusion)
    assert digest == models.diffusion_digest(GaussianDiffusion(NoiseSchedule.linear(3)))
    assert digest != models.diffusion_digest(dataclasses.replace(diffusion, **change))


@pytest.mark.parametrize(("dims", "types"), [(1, "DownBlock2D"), (3, "DownBlock2D")])
def test_models_of_other_dimensions_make_an_array_without_pictures(
    tmp_path: Path, dims: int, types: str
) -> None:
    plain = {"down_block_types": (types,) * 2, "up_block_types": ("UpBlock2D",) * 2}
    model = save(tmp_path / "model", small_unet(dims=dims, **plain))
    out = tmp_path / "out"
    succeeds("sample", "-m", model, "-n", 2, "-o", out)
    x = Sampler(*from_pretrained(model)).sample(2)
    assert np.array_equal(samples_of(out), to_uint8(x).numpy())
    assert samples_of(out).shape == (2, *[8] * dims, 1)
    assert {path.name for path in out.iterdir()} == {"samples.npz", "settings.json"}
    said = fails("sample", "-m", model, "-n", 2, "--format", "png", "-o", tmp_path / "png")
    assert "pictures" in said and not (tmp_path / "png").exists()
    said = fails("interpolate", 0, 1, "-m", model, "--t", 3, "-o", tmp_path / "row.png")
    assert "pictures" in said and not (tmp_path / "row.png").exists()


def test_a_full_disk_keeps_whole_shards_and_the_same_command_goes_on(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    arguments = ("sample", "-m", model, "-n", 6, "--batch-size", 2, "-o", out)
    written = []

    def flush(path: Path) -> None:
        written.append(path)
        # Settings and the first shard find room, each a file and its folder.
        if len(written) > 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "flush", flush)
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
    options = ["-m", model, "-n", "200", "--batch-size", "1", "-o", str(out)]
    command = [sys.executable, "-m", "fastddpm", "sample", *options]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job inherits an ignored SIGINT, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not list((out / "shards").glob("*.npz")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    done = len(list((out / "shards").glob("*.npz")))
    assert 0 < done < 200 and f"{done} of 200 images are done" in errors
    assert not list(out.rglob("*.partial"))
    succeeds("sample", *options)
    whole = to_uint8(sampler_of(model).sample(200, batch_size=1)).numpy()
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
