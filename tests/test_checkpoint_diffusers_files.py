"""The files that a diffusers folder may keep its weights in: .bin, variants, shards, old names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastddpm import GaussianDiffusion, NoiseSchedule, from_pretrained, save_pretrained
from fastddpm.checkpoint.diffusers_weights import STEM
from fastddpm.unet import UNet, UNetConfig

CONFIG: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (4, 8),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "attention_head_dim": 4,
}
PLAIN = f"{STEM}.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint with weights other than a fresh network's zeros."""
    unet = UNet(UNetConfig(**CONFIG))
    generator = torch.Generator().manual_seed(0)
    for parameter in unet.parameters():
        parameter.data.normal_(generator=generator)
    save_pretrained(tmp_path, unet, GaussianDiffusion(NoiseSchedule.linear(10)))
    return tmp_path


def weights(folder: Path, **how: Any) -> dict[str, Tensor]:
    return from_pretrained(folder, **how)[0].state_dict()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def taken(folder: Path) -> dict[str, Tensor]:
    """The plain weights, whose file is removed."""
    state = load_file(folder / PLAIN)
    (folder / PLAIN).unlink()
    return state


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_bin(legacy: bool, folder: Path) -> None:
    state = taken(folder)
    torch.save(state, folder / f"{STEM}.bin", _use_new_zipfile_serialization=not legacy)
    assert same(weights(folder), state)


@pytest.mark.parametrize("shape", ["matrix", "convolution"])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_names_of_attention_before_0_14(kind: str, shape: str, folder: Path) -> None:
    state, legacy = taken(folder), {}
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for key, value in state.items():
        for new, name in old.items():
            if f".{new}." in key and shape == "convolution" and value.ndim == 2:
                value = value[:, :, None, None]
            key = key.replace(f".{new}.", f".{name}.")
        legacy[key] = value.contiguous()
    assert len(legacy.keys() - state.keys()) == 8 * 4
    if kind == "bin":
        torch.save(legacy, folder / f"{STEM}.bin")
    else:
        save_file(legacy, folder / PLAIN)
    assert same(weights(folder), state)


def test_variants(folder: Path) -> None:
    state = load_file(folder / PLAIN)
    halves = {key: value.half() for key, value in state.items()}
    save_file(halves, folder / f"{STEM}.fp16.safetensors")
    raw = {key: value + 1 for key, value in state.items()}
    torch.save(raw, folder / f"{STEM}.non_ema.bin")
    assert same(weights(folder), state)
    assert same(weights(folder, variant="fp16"), {k: v.float() for k, v in halves.items()})
    assert same(weights(folder, variant="non_ema"), raw)
    with pytest.raises(ValueError, match=rf"expected {STEM}.bf16.safetensors, found"):
        weights(folder, variant="bf16")
    (folder / PLAIN).unlink()
    with pytest.raises(ValueError, match="choose a variant out of fp16, non_ema"):
        weights(folder)
    (folder / f"{STEM}.non_ema.bin").unlink()
    assert same(weights(folder), {k: v.float() for k, v in halves.items()})


def shard(folder: Path, kind: str, middle: str = "", index: str = "{kind}.index") -> Path:
    """The plain weights in two files, the middle of their names `middle`; returns the index."""
    state = taken(folder)
    keys = list(state)
    files = {}
    for i, some in enumerate((keys[:30], keys[30:]), 1):
        name = f"{STEM}{middle}-{i:05d}-of-00002.{kind}"
        part = {key: state[key] for key in some}
        if kind == "bin":
            torch.save(part, folder / name)
        else:
            save_file(part, folder / name)
        files |= dict.fromkeys(some, name)
    path = folder / f"{STEM}.{index.format(kind=kind)}.json"
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": files}))
    return path


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards(kind: str, folder: Path) -> None:
    state = load_file(folder / PLAIN)
    shard(folder, kind)
    assert same(weights(folder), state)


@pytest.mark.parametrize("index", ["fp16.{kind}.index", "{kind}.index.fp16"])
def test_shards_of_a_variant(index: str, folder: Path) -> None:
    state = load_file(folder / PLAIN)
    shard(folder, "safetensors", ".fp16", index)
    assert same(weights(folder, variant="fp16"), state)


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors",
        "/etc/passwd",
        f"../{STEM}-00001-of-00002.safetensors",
        f"a/{STEM}-00001-of-00002.safetensors",
        f"{STEM}-00001-of-00002.safetensors\n",
        "config.json",
        PLAIN,
        "",
        7,
        None,
    ],
)
def test_shards_that_lead_elsewhere(name: Any, folder: Path) -> None:
    index = shard(folder, "safetensors")
    contents = json.loads(index.read_text())
    contents["weight_map"]["conv_in.bias"] = name
    index.write_text(json.dumps(contents))
    with pytest.raises(ValueError, match=r"conv_in\.bias: expected a shard beside it"):
        weights(folder)


def test_shards_that_disagree_with_their_index(folder: Path) -> None:
    index = shard(folder, "safetensors")
    second = folder / f"{STEM}-00002-of-00002.safetensors"
    contents = json.loads(index.read_text())
    moved = contents | {"weight_map": contents["weight_map"] | {"conv_in.bias": second.name}}
    index.write_text(json.dumps(moved))
    with pytest.raises(ValueError, match=r"does not fit .*conv_in.bias"):
        weights(folder)
    index.write_text(json.dumps(contents))
    second.unlink()
    with pytest.raises(ValueError, match=r"expected the shard .* beside it, found nothing"):
        weights(folder)
    for wrong in ({}, {"weight_map": {}}, {"weight_map": [1]}):
        index.write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match="weight_map: expected names and their files"):
            weights(folder)
