"""``fastddpm sample``: what it writes, what it keeps, and how it goes on after a stop."""

from __future__ import annotations

import dataclasses
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
from cli_runs import (
    STEPS,
    expected,
    fails,
    sampler_of,
    samples_of,
    save,
    small_unet,
    succeeds,
)
from cpu_program.steps import needs_library
from PIL import Image

from fastddpm import atomic
from fastddpm.checkpoint import from_pretrained
from fastddpm.checkpoint.digest import diffusion_digest
from fastddpm.diffusion import GaussianDiffusion
from fastddpm.sampler import Sampler, load_png, to_uint8
from fastddpm.schedule import NoiseSchedule
from fastddpm.timesteps import linspace


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("cli") / "model", small_unet())


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
    digest = diffusion_digest(diffusion)
    assert digest == diffusion_digest(GaussianDiffusion(NoiseSchedule.linear(3)))
    assert digest != diffusion_digest(dataclasses.replace(diffusion, **change))


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
