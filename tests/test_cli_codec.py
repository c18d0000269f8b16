"""``fastddpm compress`` and ``fastddpm decompress``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_runs import CONFIG, STEPS, fails, run, save, small_unet, succeeds

from fastddpm.cli import decompress
from fastddpm.codec import Codec, journal
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


def test_its_results_as_json(file: Path) -> None:
    told = json.loads(file.with_name("images.ddp.json").read_text())
    assert told["bytes"] == file.stat().st_size
    assert sum(told["bits"].values()) == pytest.approx(8 * told["bytes"])
    assert {"blocks", "levels", "pixels", "checks", "container"} == set(told["bits"])
    numbers = 3 * 8 * 8
    assert told["bits_per_dimension"] == pytest.approx(8 * told["bytes"] / numbers)
    assert told["ideal_bits_per_dimension"] == pytest.approx(told["ideal_bits"] / numbers)
    assert told["settings"]["num"] == 3 and told["settings"]["block_bits"] == 4


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


def test_what_our_commands_write_is_read(model: str, file: Path, tmp_path: Path) -> None:
    given = ("--model", model, "--block-bits", 4)
    succeeds("decompress", file, "--model", model, "--out", tmp_path / "x.npz")
    succeeds("compress", tmp_path / "x.npz", *given, "--out", tmp_path / "x.ddp")
    assert (tmp_path / "x.ddp").read_bytes() == file.read_bytes()
    np.savez(tmp_path / "floats.npz", samples=np.zeros((1, 8, 8, 1), np.float32))
    said = fails("compress", tmp_path / "floats.npz", *given, "--out", tmp_path / "y.ddp")
    assert "floats" in said and "bytes" in said


def test_out_that_cannot_be_written_is_told_before_work(
    model: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Codec, "encode", None)
    monkeypatch.setattr(Codec, "decode", None)
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for out in (tmp_path / "file" / "out", tmp_path / "folder"):
        fails("compress", file.with_name("0.png"), "--model", model, "--out", out, "--overwrite")
    for out in (tmp_path / "file", tmp_path / "file" / "out.npz"):
        fails("decompress", file, "--model", model, "--out", out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]
    assert not any((tmp_path / "folder").iterdir())


def test_it_goes_on_where_it_stopped(
    model: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [file.with_name(f"{j}.png") for j in range(3)]
    out, kept = tmp_path / "new" / "out.ddp", tmp_path / "new" / "out.ddp.journal"
    given = ("compress", *pictures, "--model", model, "--block-bits", 4, "--out", out)
    own, searched = journal.choose, []

    def choose(*arguments: Any) -> Any:
        if len(searched) == last:
            raise KeyboardInterrupt
        searched.append(arguments)
        return own(*arguments)

    monkeypatch.setattr(journal, "choose", choose)
    last = 0
    result = run(*given)
    assert result.exit_code == 130 and "nothing is kept" in result.stderr
    assert not any(out.parent.iterdir())
    last = 50
    result = run(*given)
    assert result.exit_code == 130 and f"50 blocks are found and kept in {kept}" in result.stderr
    assert kept.exists() and not out.exists()
    other = fails(*given, "--seed", 4)
    assert "(seed)" in other and "--overwrite" in other
    with kept.open("ab") as damaged:
        damaged.write(b"half a record")
    last = -1
    result = run(*given)
    assert result.exit_code == 0
    assert "last 13 bytes" in result.stderr and "going on: 50 blocks" in result.stderr
    assert out.read_bytes() == file.read_bytes()
    assert not kept.exists()
    # No search was done twice.
    assert len({arguments[0] for arguments in searched}) == len(searched)


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


def test_pictures_of_others_are_not_replaced_or_mixed(
    model: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("decompress", file, "--model", model, "--out", tmp_path)
    (tmp_path / "notes.png").touch()
    (tmp_path / "000002.png").write_bytes(b"mine")
    with monkeypatch.context() as patch:
        # Refused before any work.
        patch.setattr(decompress, "load_codec", None)
        assert "000002.png exists" in fails(*given)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000002.png", "notes.png"]
    assert (tmp_path / "000002.png").read_bytes() == b"mine"
    # Of a longer run: even replaced ones would lie beside it.
    (tmp_path / "000003.png").touch()
    assert "000003.png" in fails(*given, "--overwrite")
    assert (tmp_path / "000002.png").read_bytes() == b"mine"
    (tmp_path / "000003.png").unlink()
    succeeds(*given, "--overwrite")
    assert len(list(tmp_path.iterdir())) == 4


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
