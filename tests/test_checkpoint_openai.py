"""OpenAI state dicts: names, the two orders of qkv, and both levels of keyword arguments.

That the network computes what improved-diffusion's does is shown by the golden sets
(tests/test_golden.py, group unet_iddpm); here the map of names and arguments is examined.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fastddpm.checkpoint import (
    from_openai,
    from_pretrained,
    save_openai,
    save_pretrained,
    to_openai,
)
from fastddpm.checkpoint.openai_kwargs import diffusion_of, read_kwargs, unet_config
from fastddpm.diffusion import GaussianDiffusion
from fastddpm.schedule import NoiseSchedule
from fastddpm.timesteps import openai_sections
from fastddpm.unet import UNet, UNetConfig

SMALL: dict[str, Any] = {
    "image_size": 8,
    "in_channels": 3,
    "model_channels": 32,
    "out_channels": 3,
    "num_res_blocks": 1,
    "attention_resolutions": [2],
    "channel_mult": [1, 2],
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "heads": {"num_heads": 4},
    "more heads upwards": {"num_heads": 2, "num_heads_upsample": 8},
    "width of a head": {"num_head_channels": 16, "attention_resolutions": [1, 2]},
    "scale shift": {"use_scale_shift_norm": True, "out_channels": 6},
    "classes": {"num_classes": 4},
    "blocks that resample": {"resblock_updown": True, "attention_resolutions": [1]},
    "pooling": {"conv_resample": False},
    "1-D": {"dims": 1},
    "3-D": {"dims": 3},
    "half width first": {"channel_mult": [0.5, 1, 1], "model_channels": 64},
    "one level": {"channel_mult": [1], "attention_resolutions": [1]},
    "two layers, three levels": {"num_res_blocks": 2, "channel_mult": [1, 1, 2]},
}


def config_of(kwargs: dict[str, Any]) -> UNetConfig:
    return unet_config(read_kwargs(kwargs, "kwargs")[0])


def randomised(config: UNetConfig) -> UNet:
    generator = torch.Generator().manual_seed(0)
    unet = UNet(config)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return unet.eval()


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("new_order", [False, True])
def test_names_there_and_back(name: str, new_order: bool) -> None:
    config = config_of(SMALL | VARIANTS[name])
    state = dict(randomised(config).state_dict())
    theirs = to_openai(state, config, use_new_attention_order=new_order)
    blocks = ("time_embed", "label_emb", "input_blocks", "middle_block", "output_blocks", "out")
    assert all(key.split(".")[0] in blocks for key in theirs)
    assert sum(v.numel() for v in theirs.values()) == sum(v.numel() for v in state.values())
    again = from_openai(theirs, config, use_new_attention_order=new_order)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], state[key]) for key in state)


@pytest.mark.parametrize("new_order", [False, True])
def test_the_row_of_each_query_key_and_value(new_order: bool) -> None:
    config = config_of(SMALL | {"num_heads": 4})
    C, heads = 64, 4
    rows = torch.arange(3 * C, dtype=torch.float32)
    name = "middle_block.1.qkv"
    state = {f"{name}.bias": rows, f"{name}.weight": rows[:, None, None].expand(-1, C, 1)}
    ours = from_openai(state, config, use_new_attention_order=new_order)
    for i, part in enumerate(("to_q", "to_k", "to_v")):
        for channel in range(C):
            head, within = divmod(channel, C // heads)
            slot = i * heads + head if new_order else head * 3 + i
            row = slot * (C // heads) + within
            assert ours[f"mid_block.attentions.0.{part}.bias"][channel] == row
            assert (ours[f"mid_block.attentions.0.{part}.weight"][channel] == row).all()
    assert ours["mid_block.attentions.0.to_q.weight"].shape == (C, C)


def test_known_names() -> None:
    config = config_of(SMALL)
    theirs = to_openai(UNet(config).state_dict(), config)
    shapes = {
        "time_embed.0.weight": [128, 32],
        "input_blocks.0.0.weight": [32, 3, 3, 3],
        "input_blocks.1.0.in_layers.0.weight": [32],
        "input_blocks.1.0.emb_layers.1.weight": [32, 128],
        "input_blocks.2.0.op.weight": [32, 32, 3, 3],
        "input_blocks.3.0.skip_connection.weight": [64, 32, 1, 1],
        "input_blocks.3.1.qkv.weight": [192, 64, 1],
        "middle_block.1.proj_out.weight": [64, 64, 1],
        "middle_block.2.out_layers.3.weight": [64, 64, 3, 3],
        "output_blocks.1.2.conv.weight": [64, 64, 3, 3],
        "output_blocks.3.0.in_layers.2.weight": [32, 64, 3, 3],
        "out.2.weight": [3, 32, 3, 3],
    }
    assert {key: list(theirs[key].shape) for key in shapes} == shapes


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_files(name: str, suffix: str, tmp_path: Path) -> None:
    """A state dict is read from a file with kwargs, and from the folders that we write."""
    kwargs = SMALL | VARIANTS[name]
    unet = randomised(config_of(kwargs))
    state = {k: v.contiguous() for k, v in to_openai(unet.state_dict(), unet.config).items()}
    path = tmp_path / f"ema{suffix}"
    torch.save(state, path) if suffix == ".pt" else save_file(state, path)
    read, diffusion = from_pretrained(path, kwargs=kwargs)
    same(unet, read)
    (tmp_path / "kwargs.json").write_text(json.dumps(kwargs))
    same(unet, from_pretrained(path)[0])
    same(unet, from_pretrained(tmp_path)[0])

    save_openai(tmp_path / "openai", read, diffusion)
    save_pretrained(tmp_path / "diffusers", read, diffusion)
    for folder in ("openai", "diffusers"):
        again, process = from_pretrained(tmp_path / folder)
        same(unet, again)
        assert process.variance == diffusion.variance
        assert torch.equal(process.schedule.betas, diffusion.schedule.betas)


def same(a: UNet, b: UNet) -> None:
    assert a.config == b.config
    assert not b.training
    for (name, p), (other, q) in zip(a.named_parameters(), b.named_parameters(), strict=True):
        assert name == other and torch.equal(p, q), name


def test_the_flags_of_the_scripts() -> None:
    """guided-diffusion's 64x64 ImageNet model, by its published MODEL_FLAGS."""
    flags = {
        "attention_resolutions": "32,16,8",
        "class_cond": True,
        "diffusion_steps": 1000,
        "dropout": 0.1,
        "image_size": 64,
        "learn_sigma": True,
        "noise_schedule": "cosine",
        "num_channels": 192,
        "num_head_channels": 64,
        "num_res_blocks": 3,
        "resblock_updown": True,
        "use_new_attention_order": True,
        "use_fp16": True,
        "use_scale_shift_norm": True,
    }
    model, process = read_kwargs(flags, "flags")
    assert model.attention_resolutions == (2, 4, 8) and model.use_new_attention_order
    config, diffusion = unet_config(model), diffusion_of(process, "flags")
    with torch.device("meta"):
        count = sum(p.numel() for p in UNet(config).parameters())
    # 296 M: Dhariwal & Nichol 2021, table of ImageNet 64x64 models.
    assert round(count / 1e6) == 296
    assert diffusion.variance == "learned_range" and diffusion.prediction == "epsilon"
    assert torch.equal(diffusion.schedule.betas, NoiseSchedule.cosine(1000).betas)


def test_the_process_of_the_scripts() -> None:
    flags = {
        "image_size": 32,
        "diffusion_steps": 4000,
        "noise_schedule": "linear",
        "timestep_respacing": "ddim50",
        "sigma_small": True,
        "predict_xstart": True,
        "rescale_timesteps": True,
        "rescale_learned_sigmas": False,
        "use_kl": False,
    }
    model, process = read_kwargs(flags, "flags")
    assert model.channel_mult == (1, 2, 2, 2) and model.attention_resolutions == (2, 4)
    diffusion = diffusion_of(process, "flags")
    kept = openai_sections(4000, "ddim50")
    expected = NoiseSchedule.openai_linear(4000).respace(kept)
    assert torch.equal(diffusion.schedule.betas, expected.betas)
    assert (diffusion.prediction, diffusion.variance) == ("sample", "fixed_small")
    assert diffusion.timestep_scale == 0.25
    assert diffusion_of(read_kwargs({}, "flags")[1], "flags").variance == "fixed_large"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_head": 3}, "unknown arguments num_head"),
        ({"num_heads": "four"}, "num_heads: expected int, found 'four'"),
        ({"learn_sigma": True}, "learn_sigma=True does not fit"),
        ({"diffusion_steps": 4000}, "rescale_timesteps"),
        ({"noise_schedule": "sqrt"}, "linear or cosine"),
        ({"num_heads": 5}, "attention head"),
        ({"model_channels": 48}, "norm_num_groups"),
        ({"timestep_respacing": "9999"}, "9999"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    unet = randomised(config_of(SMALL))
    torch.save(to_openai(unet.state_dict(), unet.config), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=message):
        from_pretrained(tmp_path / "model.pt", kwargs=SMALL | change)


def test_wrong_script_flags() -> None:
    with pytest.raises(ValueError, match="image_size=48 needs channel_mult"):
        read_kwargs({"image_size": 48}, "flags")
    with pytest.raises(ValueError, match="found 'a,b'"):
        read_kwargs({"attention_resolutions": "a,b"}, "flags")
    with pytest.raises(ValueError, match="pixels"):
        read_kwargs({"attention_resolutions": "0"}, "flags")
    with pytest.raises(ValueError, match="num_res_blocks, attention_resolutions, found none"):
        read_kwargs({"model_channels": 32}, "flags")


def test_a_state_dict_without_arguments_is_refused(tmp_path: Path) -> None:
    unet = randomised(config_of(SMALL))
    torch.save(to_openai(unet.state_dict(), unet.config), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"kwargs.json beside it"):
        from_pretrained(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("change", "settings"),
    [
        ({"use_scale_shift_norm": True}, "use_scale_shift_norm"),
        ({"out_channels": 6}, "learn_sigma"),
        ({"num_classes": 3}, "num_classes"),
        ({"attention_resolutions": [1, 2]}, "attention_resolutions"),
        ({"num_res_blocks": 2}, "num_res_blocks"),
        ({"channel_mult": [1, 3]}, "channel_mult"),
        ({"model_channels": 64}, "model_channels"),
        ({"conv_resample": False}, "conv_resample"),
        ({"resblock_updown": True}, "resblock_updown"),
        ({"dims": 1}, "dims"),
    ],
)
def test_arguments_that_do_not_fit_are_named(
    change: dict[str, Any], settings: str, tmp_path: Path
) -> None:
    unet = randomised(config_of(SMALL))
    torch.save(to_openai(unet.state_dict(), unet.config), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"does not fit") as error:
        from_pretrained(tmp_path / "model.pt", kwargs=SMALL | change)
    assert settings in str(error.value).split("settings to check")[1]


@pytest.mark.parametrize(
    ("fields", "process", "message"),
    [
        ({"norm_eps": 1e-6}, {}, "norm_eps=1e-06"),
        ({"flip_sin_to_cos": False, "freq_shift": 1}, {}, "freq_shift=1, flip_sin_to_cos=False"),
        ({"class_embed_type": "timestep"}, {}, "class_embed_type='timestep'"),
        ({"add_attention": False}, {}, "add_attention=False"),
        ({}, {"prediction": "v_prediction"}, "prediction='v_prediction'"),
        ({}, {"clip": None}, "clip=None"),
        ({}, {"schedule": NoiseSchedule.sigmoid(1000)}, "NoiseSchedule"),
        ({}, {"variance": "learned_range"}, "out_channels=3"),
    ],
)
def test_what_openai_cannot_express_is_not_exported(
    fields: dict[str, Any], process: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = UNetConfig(**config_of(SMALL).to_dict() | fields)
    settings = {"schedule": NoiseSchedule.linear(1000)} | process
    with pytest.raises(ValueError, match="no arguments for") as error:
        save_openai(tmp_path / "out", UNet(config), GaussianDiffusion(**settings))
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_thirty_two_groups_are_all_that_openai_has(tmp_path: Path) -> None:
    config = UNetConfig(
        **config_of(SMALL).to_dict() | {"block_out_channels": (8, 16)} | {"norm_num_groups": 4}
    )
    with pytest.raises(ValueError, match="normalises in 32 groups"):
        save_openai(tmp_path, UNet(config), GaussianDiffusion(NoiseSchedule.linear(1000)))


def test_gradients_pass_through_the_map() -> None:
    """The map is linear, so the gradient under OpenAI's names is the map of the gradient."""
    config = config_of(SMALL | {"num_heads": 2})
    unet = randomised(config)
    leaves = {
        k: v.clone().requires_grad_() for k, v in to_openai(unet.state_dict(), config).items()
    }
    x, t = torch.randn(1, 3, 8, 8), torch.tensor([5])
    out = torch.func.functional_call(unet, from_openai(leaves, config), (x, t))
    out.square().sum().backward()
    unet(x, t).square().sum().backward()
    mapped = to_openai({k: p.grad for k, p in unet.named_parameters()}, config)
    for key, leaf in leaves.items():
        torch.testing.assert_close(mapped[key], leaf.grad)
