"""One network in every layout that can express it: the same tensors, outputs and process in all."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from port_references import numbered_forward, numbered_state, pesser_state
from test_checkpoint_convert import convert
from test_checkpoint_files import failing
from test_checkpoint_ports import variables

from fastddpm import checkpoint
from fastddpm.checkpoint import from_pretrained
from fastddpm.checkpoint.differences import effective
from fastddpm.checkpoint.tensor_bundle import TensorBundle
from fastddpm.diffusion import GaussianDiffusion
from fastddpm.schedule import NoiseSchedule
from fastddpm.unet import UNet, UNetConfig

SAVERS: dict[str, Any] = {
    "diffusers": checkpoint.save_pretrained,
    "openai": checkpoint.save_openai,
    "ho": checkpoint.save_ho_bundle,
    "pesser": checkpoint.save_ho,
    "pytorch-ddpm": checkpoint.save_pytorch_ddpm,
}
# What a refusal calls the settings.
SAID = {"openai": "arguments", "pytorch-ddpm": "flags"}
LEVELS: dict[str, Any] = {
    "sample_size": 16,
    "channels": 32,
    "channel_mult": (1, 2),
    "layers_per_block": 1,
    "attention_resolutions": (8,),
    "dropout": 0.1,
}
FLOAT32_BETAS = NoiseSchedule.from_betas(torch.linspace(1e-4, 0.02, 50).double())
OURS_ALONE = {"norm_eps": 1e-5, "freq_shift": 0, "downsample_padding": 1}


class Network(NamedTuple):
    """A network, its process, and the layouts that can express both."""

    config: UNetConfig
    process: GaussianDiffusion
    layouts: tuple[str, ...]


NETWORKS = {
    "Ho": Network(
        UNetConfig.ho(**LEVELS),
        GaussianDiffusion(NoiseSchedule.linear(100, 1e-3, 0.03), variance="fixed_large"),
        ("diffusers", "ho", "pesser"),
    ),
    "Ho's learned variance, without resampling convolutions": Network(
        UNetConfig.ho(**LEVELS, out_channels=6, downsample_type="pool", upsample_type="nearest"),
        GaussianDiffusion(NoiseSchedule.scaled_linear(60, 1e-3, 0.03), variance="learned"),
        ("diffusers", "ho", "pesser"),
    ),
    "pytorch-ddpm": Network(
        UNetConfig.ho(**LEVELS, **OURS_ALONE),
        GaussianDiffusion(FLOAT32_BETAS, prediction="sample", variance="fixed_large", clip=None),
        ("diffusers", "pytorch-ddpm"),
    ),
    "OpenAI": Network(
        UNetConfig.ho(**LEVELS, **OURS_ALONE, flip_sin_to_cos=True),
        GaussianDiffusion(NoiseSchedule.cosine(40), variance="fixed_small"),
        ("diffusers", "openai"),
    ),
}
PAIRS = [
    (name, *pair)
    for name, network in NETWORKS.items()
    for pair in itertools.product(network.layouts, repeat=2)
]


def drawn(config: UNetConfig) -> UNet:
    generator = torch.Generator().manual_seed(0)
    unet = UNet(config).eval()
    for parameter in unet.parameters():
        parameter.data.normal_(0, 0.1, generator=generator)
    return unet


def assert_the_same(folder: Path, unet: UNet, process: GaussianDiffusion) -> None:
    again, same = from_pretrained(folder)
    state = unet.state_dict()
    assert again.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())
    assert effective(again.config) == effective(unet.config)
    assert again.config.sample_size == unet.config.sample_size
    assert torch.equal(same.schedule.betas, process.schedule.betas)
    for name in ("prediction", "variance", "clip", "last_step_noise", "timestep_scale"):
        assert getattr(same, name) == getattr(process, name)
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 39])
    with torch.inference_mode():
        assert torch.equal(again(x, t), unet(x, t))


@pytest.mark.parametrize(("name", "first", "second"), PAIRS)
def test_from_layout_to_layout(name: str, first: str, second: str, tmp_path: Path) -> None:
    config, process, _ = NETWORKS[name]
    unet = drawn(config)
    SAVERS[first](tmp_path / "first", unet, process)
    assert_the_same(tmp_path / "first", unet, process)
    code, output = convert(tmp_path / "first", tmp_path / "second", "--to", second)
    assert code == 0 and f"({second} layout)" in output
    assert_the_same(tmp_path / "second", unet, process)


@pytest.mark.parametrize(
    ("name", "layout"),
    [(n, s) for n, network in NETWORKS.items() for s in SAVERS if s not in network.layouts],
)
def test_a_layout_of_another_network(name: str, layout: str, tmp_path: Path) -> None:
    """Refused before anything is written, also where something is to be replaced."""
    config, process, _ = NETWORKS[name]
    unet, model = drawn(config), tmp_path / "model"
    checkpoint.save_pretrained(model, unet, process)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("stays")
    code, output = convert(model, tmp_path / "out", "--to", layout, "--overwrite")
    assert code == 1 and f"no {SAID.get(layout, 'settings')} for " in output
    assert os.listdir(tmp_path / "out") == ["old"]


@pytest.mark.parametrize("layout", SAVERS)
def test_an_output_that_is_there(layout: str, tmp_path: Path) -> None:
    """Refused, and with --overwrite replaced by the other network."""
    config, process, _ = next(n for n in NETWORKS.values() if layout in n.layouts)
    unet, out = drawn(config), tmp_path / "out"
    SAVERS[layout](out, UNet(config), process)
    checkpoint.save_pretrained(tmp_path / "model", unet, process)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    code, output = convert(tmp_path / "model", out, "--to", layout)
    assert code == 1 and "--overwrite" in output
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert convert(tmp_path / "model", out, "--to", layout, "--overwrite")[0] == 0
    assert {path.name for path in out.iterdir()} == before.keys()
    assert_the_same(out, unet, process)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "model"}


@pytest.mark.parametrize("variance", ["fixed_large", "fixed_small"])
@pytest.mark.parametrize("layout", ["ho", "pesser", "pytorch-ddpm"])
def test_stopped_at_any_call_the_old_or_the_new_is_there(
    layout: str, variance: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The settings beside a checkpoint change with it, or stay as they are."""
    network = next(n for n in NETWORKS.values() if layout in n.layouts)
    one_level: dict[str, Any] = {
        "block_out_channels": (32,),
        "down_block_types": ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",),
    }
    config = network.config.to_dict() | one_level
    old, new = UNet(UNetConfig(**config)), drawn(UNetConfig(**config))
    schedule, clip = network.process.schedule, network.process.clip
    SAVERS[layout](
        tmp_path / "out", old, GaussianDiffusion(schedule, "epsilon", "fixed_large", clip)
    )
    process = GaussianDiffusion(schedule, "epsilon", variance, clip)
    key, stops = "conv_in.weight", 0
    for stop in range(100):
        calls = iter(range(1000))
        with monkeypatch.context() as patch:
            for name in ("fsync", "replace", "rename"):
                patch.setattr(os, name, failing(getattr(os, name), calls, stop))
            try:
                SAVERS[layout](tmp_path / "out", new, process)
            except OSError:
                stops += 1
            else:
                break
        unet, found = from_pretrained(tmp_path / "out")
        is_new = torch.equal(unet.state_dict()[key], new.state_dict()[key])
        assert is_new or torch.equal(unet.state_dict()[key], old.state_dict()[key])
        assert found.variance == (variance if is_new else "fixed_large")
        assert os.listdir(tmp_path) == ["out"]
    assert stops >= 3
    assert_the_same(tmp_path / "out", new, process)


# ---- what the other code finds


def test_the_files_of_pytorch_ddpm(tmp_path: Path) -> None:
    config, process, _ = NETWORKS["pytorch-ddpm"]
    unet = drawn(config)
    checkpoint.save_pytorch_ddpm(tmp_path / "logs", unet, process)
    contents = torch.load(tmp_path / "logs" / "ckpt.pt", weights_only=True)
    assert contents.keys() == {"net_model", "ema_model", "step"} and contents["step"] == 0
    expected = numbered_state(T=50)
    for state in (contents["net_model"], contents["ema_model"]):
        assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in expected.items()}
        table = "time_embedding.timembedding.0.weight"
        # Angles of up to 50 in float32.
        assert torch.allclose(state[table], expected[table], rtol=0, atol=1e-5)
        x, t = torch.randn(2, 3, 16, 16), torch.tensor([0, 49])
        with torch.inference_mode():
            ours, theirs = unet(x, t), numbered_forward(state, x, t)
        assert (ours - theirs).abs().max() < 5e-6 * theirs.abs().max()
    flags = (tmp_path / "logs" / "flagfile.txt").read_text().split()
    assert flags == [
        *("--ch=32", "--ch_mult=1", "--ch_mult=2", "--attn=1"),
        *("--num_res_blocks=1", "--T=50", "--beta_1=0.0001", "--beta_T=0.02"),
        *("--mean_type=xstart", "--var_type=fixedlarge", "--img_size=16", "--dropout=0.1"),
    ]


def test_float64_betas_of_pytorch_ddpm(tmp_path: Path) -> None:
    """As everybody's linear schedule: the nearest float32 numbers, which its code computes with."""
    config = NETWORKS["pytorch-ddpm"].config
    schedule = NoiseSchedule.linear(1000, 2e-4, 0.015)
    checkpoint.save_pytorch_ddpm(
        tmp_path / "logs", drawn(config), GaussianDiffusion(schedule, clip=None)
    )
    betas = from_pretrained(tmp_path / "logs")[1].schedule.betas
    assert torch.equal(betas, torch.linspace(2e-4, 0.015, 1000).double())
    with pytest.raises(ValueError, match="no flags for NoiseSchedule"):
        scaled = GaussianDiffusion(NoiseSchedule.scaled_linear(1000), clip=None)
        checkpoint.save_pytorch_ddpm(tmp_path / "no", drawn(config), scaled)


def test_the_variables_of_ho(tmp_path: Path) -> None:
    """By the rules of his nn.py, which the test of the loader writes by, too."""
    config, process, _ = NETWORKS["Ho"]
    checkpoint.save_ho_bundle(tmp_path / "run", drawn(config), process)
    checkpoint.save_ho(tmp_path / "port", drawn(config), process)
    state = torch.load(tmp_path / "port" / "model.ckpt", weights_only=True)
    assert state.keys() == pesser_state().keys()
    expected = variables(state)
    averages = {f"{name}/ExponentialMovingAverage": value for name, value in expected.items()}
    bundle = TensorBundle(tmp_path / "run" / "model.ckpt-0")
    found = {name: value.numpy() for name, value in bundle.read(bundle.entries).items()}
    assert found.keys() == expected.keys() | averages.keys() | {"global_step"}
    for name, value in (expected | averages).items():
        assert found[name].dtype == np.float32 and np.array_equal(found[name], value)
    assert found["global_step"].dtype == np.int64 and found["global_step"].shape == ()
    kwargs = json.loads((tmp_path / "run" / "kwargs.json").read_text())
    assert kwargs == json.loads((tmp_path / "port" / "kwargs.json").read_text())
    assert (kwargs["beta_start"], kwargs["num_diffusion_timesteps"]) == (1e-3, 100)


@pytest.mark.parametrize(
    ("layout", "fields", "words"),
    [
        ("pytorch-ddpm", {"in_channels": 1, "out_channels": 1}, "in_channels=1, out_channels=1"),
        ("pytorch-ddpm", {"block_out_channels": (32, 48)}, "block_out_channels=(32, 48)"),
        ("pytorch-ddpm", {"downsample_type": "pool"}, "downsample_type='pool'"),
        ("pytorch-ddpm", {"add_attention": False}, "add_attention=False"),
        ("pytorch-ddpm", {"flip_sin_to_cos": True}, "flip_sin_to_cos=True"),
        ("ho", {"block_out_channels": (32, 48)}, "block_out_channels=(32, 48)"),
        ("pesser", {"block_out_channels": (64, 32)}, "block_out_channels=(64, 32)"),
        ("ho", {"num_class_embeds": 10}, "num_class_embeds=10"),
        ("ho", {"dims": 1}, "dims=1"),
    ],
)
def test_networks_that_its_code_cannot_build(
    layout: str, fields: dict[str, Any], words: str, tmp_path: Path
) -> None:
    name = "pytorch-ddpm" if layout == "pytorch-ddpm" else "Ho"
    config, process, _ = NETWORKS[name]
    other = UNetConfig(**(config.to_dict() | {"norm_num_groups": 16} | fields))
    with pytest.raises(ValueError) as error:
        SAVERS[layout](tmp_path / "out", UNet(other), process)
    assert words in str(error.value) and "norm_num_groups=16" in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("layout", ["ho", "pytorch-ddpm"])
def test_a_network_that_attends_nowhere(layout: str, tmp_path: Path) -> None:
    """But in the middle. absl has no empty list of levels: none is -1."""
    name = "pytorch-ddpm" if layout == "pytorch-ddpm" else "Ho"
    config = UNetConfig(
        **NETWORKS[name].config.to_dict()
        | {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    )
    unet = drawn(config)
    SAVERS[layout](tmp_path / "out", unet, NETWORKS[name].process)
    assert_the_same(tmp_path / "out", unet, NETWORKS[name].process)
    if layout == "pytorch-ddpm":
        assert "--attn=-1\n" in (tmp_path / "out" / "flagfile.txt").read_text()
