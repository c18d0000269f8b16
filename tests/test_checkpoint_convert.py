"""fastddpm convert: from every layout to those that are written, and its refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from port_references import numbered_state, pesser_forward, pesser_state
from test_checkpoint_ports import write_ckpt, write_ho
from typer.testing import CliRunner

from fastddpm.checkpoint import from_pretrained, save_ho, save_pretrained, to_openai
from fastddpm.checkpoint.differences import effective
from fastddpm.checkpoint.openai_kwargs import read_kwargs, unet_config
from fastddpm.cli import app
from fastddpm.diffusion import GaussianDiffusion
from fastddpm.schedule import NoiseSchedule
from fastddpm.unet import UNet, UNetConfig

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


@pytest.mark.parametrize("raw", [False, True])
def test_ho_to_diffusers_and_pesser(raw: bool, tmp_path: Path) -> None:
    """A TensorFlow checkpoint, through a diffusers folder, as a torch file of pesser's."""
    weights = pesser_state()
    averages = {key: value + 0.01 for key, value in weights.items()}
    write_ho(tmp_path / "run" / "model.ckpt-790000", weights, averages)
    there, back = tmp_path / "there", tmp_path / "back"
    source = tmp_path / "run" / "model.ckpt-790000"
    assert convert(source, there, *(["--raw"] if raw else []))[0] == 0
    code, output = convert(there, back, "--to", "pesser")
    assert code == 0 and "(pesser layout)" in output
    state = torch.load(back / "model.ckpt", weights_only=True)
    expected = weights if raw else averages
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in state)
    # Early times: at t = 900 the rounding of the sinusoids' angles alone is 5e-5.
    x, t = torch.ones(2, 3, 16, 16).triu(), torch.tensor([3, 9])
    with torch.inference_mode():
        out = from_pretrained(back)[0](x, t)
        assert torch.equal(from_pretrained(there)[0](x, t), out)
        theirs = pesser_forward(expected, x, t)
        assert (out - theirs).abs().max() < 5e-6 * theirs.abs().max()
    assert json.loads((back / "kwargs.json").read_text())["model_var_type"] == "fixedlarge"


@pytest.mark.parametrize("name", ["linear", "scaled_linear"])
def test_a_process_in_ho_s_settings(name: str, tmp_path: Path) -> None:
    config = UNetConfig.ho(sample_size=16, channels=32, channel_mult=(1, 2), dropout=0.1)
    schedule = NoiseSchedule.named(name, 100, beta_start=1e-3, beta_end=0.03)
    process = GaussianDiffusion(schedule, prediction="sample", variance="fixed_small")
    save_ho(tmp_path / "model", UNet(config), process)
    unet, again = from_pretrained(tmp_path / "model")
    assert effective(unet.config) == effective(config) and unet.config.dropout == 0.1
    assert unet.config.sample_size == 16
    assert torch.equal(again.schedule.betas, schedule.betas)
    assert (again.prediction, again.variance) == ("sample", "fixed_small")


def test_pytorch_ddpm_to_diffusers(tmp_path: Path) -> None:
    write_ckpt(tmp_path / "ckpt.pt", numbered_state(), numbered_state())
    assert convert(tmp_path / "ckpt.pt", tmp_path / "out")[0] == 0
    (unet, process), (other, same) = (from_pretrained(tmp_path / n) for n in ("ckpt.pt", "out"))
    x, t = torch.randn(1, 3, 16, 16), torch.tensor([500])
    with torch.inference_mode():
        assert torch.equal(unet(x, t), other(x, t))
    assert torch.equal(process.schedule.betas, same.schedule.betas) and same.clip is None
    code, output = convert(tmp_path / "out", tmp_path / "no", "--to", "pesser")
    assert code == 1 and not (tmp_path / "no").exists()
    for name in ("NoiseSchedule", "norm_eps", "downsample_padding", "freq_shift", "clip=None"):
        assert name in output


def test_variants(unet: UNet, tmp_path: Path) -> None:
    model = tmp_path / "model"
    save_pretrained(model, unet, GaussianDiffusion(NoiseSchedule.linear(10)))
    plain = model / "diffusion_pytorch_model.safetensors"
    plain.rename(model / "diffusion_pytorch_model.fp16.safetensors")
    assert convert(model, tmp_path / "out", "--variant", "fp16")[0] == 0
    code, output = convert(model, tmp_path / "no", "--variant", "non_ema")
    assert code == 1 and "diffusion_pytorch_model.non_ema.safetensors" in output


def test_refusals(unet: UNet, tmp_path: Path) -> None:
    model = tmp_path / "model"
    save_pretrained(model, unet, GaussianDiffusion(NoiseSchedule.sigmoid(10)))
    code, output = convert(model, tmp_path / "out", "--to", "openai")
    assert code == 1 and "no arguments for NoiseSchedule" in output
    assert not (tmp_path / "out").exists()
    code, output = convert(model, tmp_path / "out", "--to", "onnx")
    assert code == 1 and "diffusers, openai, ho, pesser, pytorch-ddpm" in output
    code, output = convert(tmp_path / "nowhere", tmp_path / "out")
    assert code == 1 and "found nothing" in output
    code, output = convert(model, tmp_path / "out.safetensors", "--to", "diffusers")
    assert code == 1 and "out.safetensors" in output and "a folder is written" in output
    assert not (tmp_path / "out.safetensors").exists()
    code, output = convert(model, model)
    assert code == 1 and "--overwrite" in output
    assert convert(model, model, "--overwrite")[0] == 0
