"""A folder holds one layout: another's is refused there, as is mapping what cannot be mapped."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_checkpoint_convert import convert
from test_checkpoint_families import NETWORKS, SAVERS, drawn
from test_checkpoint_files import diffusion, filled, first

from fastddpm import checkpoint
from fastddpm.checkpoint import from_pretrained, save_pretrained
from fastddpm.checkpoint.diffusers import WEIGHTS
from fastddpm.unet import UNet

# The file by which each layout's folder is recognised.
MARKS = {
    "diffusers": "config.json",
    "openai": "model.safetensors",
    "ho": "model.ckpt-0.index",
    "pesser": "model.ckpt",
    "pytorch-ddpm": "ckpt.pt",
}


def save(layout: str, folder: Path, scale: int) -> UNet:
    """Write a network that the layout can express, with weights of this scale."""
    network = next(n for n in reversed(NETWORKS.values()) if layout in n.layouts)
    unet = drawn(network.config)
    for parameter in unet.parameters():
        parameter.data.mul_(scale)
    SAVERS[layout](folder, unet, network.process)
    return unet


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file below, with its time of writing."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(f.relative_to(folder)): (f.read_bytes(), f.stat().st_mtime_ns) for f in files}


def reads_as(folder: Path, unet: UNet) -> bool:
    found = from_pretrained(folder)[0].state_dict()
    return all(torch.equal(found[key], value) for key, value in unet.state_dict().items())


# ---- one layout a folder


@pytest.mark.parametrize(("old", "new"), list(itertools.permutations(SAVERS, 2)))
def test_another_layout_is_refused_before_anything_is_written(
    old: str, new: str, tmp_path: Path
) -> None:
    unet = save(old, tmp_path / "model", 1)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"another layout.*choose another folder") as error:
        save(new, tmp_path / "model", 2)
    assert f"found {tmp_path / 'model' / MARKS[old]}," in str(error.value)
    assert contents(tmp_path) == before
    assert reads_as(tmp_path / "model", unet)


@pytest.mark.parametrize("layout", SAVERS)
def test_the_same_layout_is_replaced_and_other_files_stay(layout: str, tmp_path: Path) -> None:
    save(layout, tmp_path, 1)
    (tmp_path / "log.txt").write_text("mine")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0.png").write_bytes(b"mine")
    names = contents(tmp_path).keys()
    unet = save(layout, tmp_path, 2)
    assert reads_as(tmp_path, unet) and contents(tmp_path).keys() == names
    # What a training run keeps beside its network.
    torch.save({"step": 1}, tmp_path / "optimizer.pt")
    unet = save(layout, tmp_path, 3)
    path = tmp_path if layout == "diffusers" else tmp_path / MARKS[layout]
    assert reads_as(path, unet) and (tmp_path / "optimizer.pt").exists()


@pytest.mark.parametrize("layout", SAVERS)
def test_what_is_no_checkpoint_is_no_reason_to_refuse(layout: str, tmp_path: Path) -> None:
    (tmp_path / "kwargs.json").write_text("{}")
    (tmp_path / "log.txt").write_text("mine")
    unet = save(layout, tmp_path, 1)
    assert reads_as(tmp_path, unet) and (tmp_path / "log.txt").read_text() == "mine"


@pytest.mark.parametrize("layout", SAVERS)
def test_a_pipeline_and_a_file_of_another_name(layout: str, tmp_path: Path) -> None:
    """diffusers would go on reading unet/, and of two files of tensors neither is chosen."""
    save_pretrained(tmp_path / "pipeline" / "unet", filled(1.0), diffusion())
    (tmp_path / "ema").mkdir()
    torch.save({"a": torch.zeros(1)}, tmp_path / "ema" / "ema.pt")
    before = contents(tmp_path)
    for folder, mark in (("pipeline", "unet/config.json"), ("ema", "ema.pt")):
        with pytest.raises(ValueError, match=f"found .*{mark},"):
            save(layout, tmp_path / folder, 1)
    assert contents(tmp_path) == before


def test_a_later_checkpoint_of_ho_s(tmp_path: Path) -> None:
    """TensorFlow keeps several in one folder; the file "checkpoint" names the one to read."""
    save("ho", tmp_path, 1)
    for path in list(tmp_path.glob("model.ckpt-0*")):
        path.rename(tmp_path / path.name.replace("-0.", "-790000."))
    unet = save("ho", tmp_path, 2)
    assert len(list(tmp_path.glob("*.index"))) == 2 and reads_as(tmp_path, unet)


def test_convert_overwrites_its_own_layout_alone(tmp_path: Path) -> None:
    unet = save("pesser", tmp_path / "port", 1)
    assert convert(tmp_path / "port", tmp_path / "out")[0] == 0
    before = contents(tmp_path)
    code, output = convert(tmp_path / "port", tmp_path / "out", "--to", "ho", "--overwrite")
    assert code == 1 and "another layout" in output and "config.json" in output
    assert contents(tmp_path) == before
    assert convert(tmp_path / "port", tmp_path / "out", "--overwrite")[0] == 0
    assert reads_as(tmp_path / "out", unet)


# ---- mapped, or refused


@pytest.mark.parametrize(
    ("layout", "reason"),
    [
        ("openai", r"model\.safetensors is no part of a diffusers folder"),
        ("ho", r"weights of .*model\.ckpt-0 are in a TensorFlow checkpoint"),
        ("pesser", r"weights of .*model\.ckpt are in a torch file"),
        ("pytorch-ddpm", r"weights of .*ckpt\.pt are in a torch file"),
    ],
)
def test_another_layout_cannot_be_mapped(layout: str, reason: str, tmp_path: Path) -> None:
    save(layout, tmp_path, 1)
    with pytest.raises(ValueError, match=f"^mapped: .*{reason}"):
        from_pretrained(tmp_path, mapped=True)


def test_files_of_a_diffusers_folder_that_cannot_be_mapped(tmp_path: Path) -> None:
    save_pretrained(tmp_path, filled(1.0), diffusion())
    assert first(from_pretrained(tmp_path, mapped=True)[0]) == 1.0
    with pytest.raises(
        ValueError, match=f"^mapped: .*one file of a diffusers folder: give {tmp_path}"
    ):
        from_pretrained(tmp_path / WEIGHTS, mapped=True)
    state = load_file(tmp_path / WEIGHTS)
    one_half = state | {"conv_out.bias": state["conv_out.bias"].half()}
    save_file(one_half, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=r"^mapped: .*conv_out\.bias is torch\.float16"):
        from_pretrained(tmp_path, mapped=True)
    (tmp_path / WEIGHTS).unlink()
    torch.save(state, (tmp_path / WEIGHTS).with_suffix(".bin"))
    with pytest.raises(ValueError, match=r"^mapped: .*\.bin are in a torch file"):
        from_pretrained(tmp_path, mapped=True)


def test_built_in_models_are_mapped() -> None:
    for name in checkpoint.builtin_names():
        copied, mapped = from_pretrained(name)[0], from_pretrained(name, mapped=True)[0]
        for key, value in copied.state_dict().items():
            assert torch.equal(mapped.state_dict()[key], value)
