"""fastddpm convert: from each layout to the other, and its refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fastddpm.checkpoint import from_pretrained, save_pretrained, to_openai
from fastddpm.checkpoint.openai_kwargs import read_kwargs, unet_config
from fastddpm.cli import app
from fastddpm.diffusion import GaussianDiffusion
from fastddpm.schedule import NoiseSchedule
from fastddpm.unet import UNet

KWARGS = {
    "image_size": 8,
    "model_channels": 32,
    "num_res_blocks": 1,
    "attention_resolutions": [2],
    "channel_mult": [1, 2],
    "num_heads": 2,
}


@pytest.fixture
def unet() -> UNet:
    torch.manual_seed(0)
    unet = UNet(unet_config(read_kwargs(KWARGS, "kwargs")[0])).eval()
    for parameter in unet.parameters():
        parameter.data.normal_(0, 0.1)
    return unet


def convert(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["convert", *map(str, arguments)])
    return result.exit_code, " ".join(result.output.split())


def test_openai_to_diffusers_and_back(unet: UNet, tmp_path: Path) -> None:
    torch.save(to_openai(unet.state_dict(), unet.config), tmp_path / "ema.pt")
    (tmp_path / "flags.json").write_text(json.dumps(KWARGS))
    there, back = tmp_path / "there", tmp_path / "back"
    assert convert(tmp_path / "ema.pt", there, "--kwargs", tmp_path / "flags.json")[0] == 0
    code, output = convert(there, back, "--to", "openai")
    assert code == 0 and "1000 steps" in output and "(openai layout)" in output
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3, 900])
    with torch.inference_mode():
        for folder in (there, back):
            assert torch.equal(from_pretrained(folder)[0](x, t), unet(x, t))


def test_refusals(unet: UNet, tmp_path: Path) -> None:
    model = tmp_path / "model"
    save_pretrained(model, unet, GaussianDiffusion(NoiseSchedule.sigmoid(10)))
    code, output = convert(model, tmp_path / "out", "--to", "openai")
    assert code == 1 and "no arguments for NoiseSchedule" in output
    assert not (tmp_path / "out").exists()
    code, output = convert(model, tmp_path / "out", "--to", "onnx")
    assert code == 1 and "diffusers, openai" in output
    code, output = convert(tmp_path / "nowhere", tmp_path / "out")
    assert code == 1 and "found nothing" in output
    code, output = convert(model, tmp_path / "out.safetensors", "--to", "diffusers")
    assert code == 1 and "out.safetensors" in output and "a folder is written" in output
    assert not (tmp_path / "out.safetensors").exists()
    code, output = convert(model, model)
    assert code == 1 and "--overwrite" in output
    assert convert(model, model, "--overwrite")[0] == 0
