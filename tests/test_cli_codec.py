"""``fastddpm compress`` and ``fastddpm decompress``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cli_runs import CONFIG, STEPS, fails, save, small_unet, succeeds

from fastddpm.sampler import load_png, save_png
from fastddpm.schedule import NoiseSchedule


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained network, on a chain that knows little of the last steps."""
    schedule = NoiseSchedule.linear(STEPS, 0.05, 0.3)
    return save(tmp_path_factory.mktemp("model"), small_unet(), schedule)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    size = CONFIG.sample_size
    assert isinstance(size, int)
    drawn = torch.randint(0, 256, (3, size, size, 1), generator=torch.Generator().manual_seed(4))
    return drawn.to(torch.uint8)


@pytest.fixture(scope="module")
def file(model: str, images: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compressed")
    for j, image in enumerate(images):
        save_png(folder / f"{j}.png", image)
    out = folder / "images.ddp"
    pictures = [folder / f"{j}.png" for j in range(3)]
    said = succeeds("compress", *pictures, "--model", model, "--block-bits", 4, "--out", out)
    assert f"{out.stat().st_size} bytes" in said and "bits per dimension" in said
    return out


def test_pictures_come_back(model: str, images: torch.Tensor, file: Path, tmp_path: Path) -> None:
    said = succeeds("decompress", file, "--model", model, "--out", tmp_path / "out")
    assert "3 images" in said and "exact" in said
    for j, image in enumerate(images):
        assert torch.equal(load_png(tmp_path / f"out/{j:06d}.png", 1), image)


def test_an_archive_of_the_first_images(model: str, images: torch.Tensor, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", images=images.numpy())
    succeeds(
        *("compress", tmp_path / "in.npz", "--num", 2, "--model", model, "--block-bits", 4),
        *("--seed", 3, "--steps", STEPS, "--out", tmp_path / "two.ddp"),
    )
    succeeds("decompress", tmp_path / "two.ddp", "--model", model, "--out", tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as arrays:
        assert np.array_equal(arrays["samples"], images[:2].numpy())
        assert arrays["lossless"].all()


def test_beginnings(model: str, images: torch.Tensor, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    # Past the first check, before the last.
    part = file.stat().st_size // 4
    said = succeeds("decompress", file, "--model", model, "--bytes", part, "--out", out)
    assert f"{part} bytes" in said and "estimates" in said and "checked to stage 8" in said
    with np.load(out) as arrays:
        assert not arrays["lossless"].any()
        estimates = arrays["samples"]
    cut = tmp_path / "cut.ddp"
    cut.write_bytes(file.read_bytes()[:part])
    assert "cut off or changed" in fails("decompress", cut, "--model", model)
    succeeds("decompress", cut, "--model", model, "--partial", "--out", out, "--overwrite")
    with np.load(out) as arrays:
        assert np.array_equal(arrays["samples"], estimates)
    said = succeeds(
        *("decompress", file, "--model", model, "--until", 3, "--out", tmp_path / "three")
    )
    assert f"stage 3 of {STEPS + 1}" in said


def test_errors(model: str, file: Path, tmp_path: Path) -> None:
    assert "exists" in fails("compress", file, "--model", model, "--out", file)
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "000000.png").touch()
    assert "exists" in fails("decompress", file, "--model", model, "--out", taken)
    assert "another model" in fails("decompress", file, "--out", tmp_path / "other")
    assert "header" in fails("decompress", file, "--bytes", 3, "--out", tmp_path / "other")
    other = tmp_path / "large.png"
    save_png(other, torch.zeros(9, 9, 1, dtype=torch.uint8))
    out = tmp_path / "x.ddp"
    assert "the model's" in fails("compress", other, "--model", model, "--out", out)
    (tmp_path / "no.png").write_bytes(b"no picture")
    fails("compress", tmp_path / "no.png", "--model", model, "--out", out)
    picture = file.with_name("0.png")
    assert "99" in fails("compress", picture, "--model", model, "--steps", 99, "--out", out)
    assert not out.exists()
