"""The diffusers layout against diffusers itself: what it writes we compute alike, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastddpm.checkpoint import from_pretrained, save_pretrained
from fastddpm.checkpoint.diffusers import CONFIG, WEIGHTS, current_names, read_config, write_config
from fastddpm.diffusion import GaussianDiffusion
from fastddpm.schedule import NoiseSchedule
from fastddpm.unet import UNet, UNetConfig

diffusers = pytest.importorskip("diffusers")

SMALL: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
}
HO = {"downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6}
SHIFT = {"resnet_time_scale_shift": "scale_shift"}
RESNET = {"downsample_type": "resnet", "upsample_type": "resnet"}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "ho, one head": HO | {"attention_head_dim": None},
    "channels not a multiple of the head": {"block_out_channels": (8, 20), "attention_head_dim": 8},
    "fourier": {"time_embedding_type": "fourier"},
    "learned": {"time_embedding_type": "learned", "num_train_timesteps": 1000},
    "wide time embedding": {"time_embedding_dim": 24},
    "labels": {"num_class_embeds": 5},
    "labels as timesteps": {"class_embed_type": "timestep"},
    "labels as they are": {"class_embed_type": "identity"},
    "scale shift": SHIFT,
    "scale shift, normed middle": SHIFT | {"attn_norm_num_groups": 2},
    "resampling in blocks": RESNET,
    "resampling in blocks without attention": {
        "down_block_types": ("ResnetDownsampleBlock2D", "ResnetDownsampleBlock2D"),
        "up_block_types": ("ResnetUpsampleBlock2D", "ResnetUpsampleBlock2D"),
    },
    "attention at every level": {
        "down_block_types": ("AttnDownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D"),
        **RESNET,
        **SHIFT,
    },
    "no middle attention": {"add_attention": False},
    "no middle": {"mid_block_type": None},
    "scaled middle": {"mid_block_scale_factor": 1.5},
    "centred input": {"center_input_sample": True},
    "learned variance": {"out_channels": 6},
    "other activation": {"act_fn": "mish"},
    "three levels, two layers": {
        "block_out_channels": (8, 12, 16),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 2,
        "in_channels": 1,
        "out_channels": 1,
        **HO,
    },
    "one level": {
        "block_out_channels": (8,),
        "down_block_types": ("AttnDownBlock2D",),
        "up_block_types": ("UpBlock2D",),
    },
}


def inputs(config: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(1)
    # Not square; the batch does not divide the channels.
    x = torch.randn(3, config.get("in_channels", 3), 8, 12, generator=generator)
    labels = None
    if "num_class_embeds" in config:
        labels = torch.tensor([0, 4, 2])
    elif config.get("class_embed_type") == "timestep":
        labels = torch.tensor([1.5, 30.0, 2.0])
    elif config.get("class_embed_type") == "identity":
        labels = torch.randn(3, 4 * config["block_out_channels"][0], generator=generator)
    # log t of the Fourier embedding needs t > 0.
    return x, torch.tensor([1, 17, 999]), labels


def randomised(module: torch.nn.Module) -> Any:
    """Every parameter random, zeros and ones of the initialisation included."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = 0.3 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return module.eval()


def agree(ours: UNet, theirs: Any, config: dict[str, Any], t: Tensor | None = None) -> None:
    x, timesteps, labels = inputs(config)
    timesteps = timesteps if t is None else t
    with torch.inference_mode():
        expected = theirs(x, timesteps, class_labels=labels).sample
        out = ours(x, timesteps, labels)
    assert expected.std() > 0.05
    torch.testing.assert_close(
        out, expected, rtol=0, atol=2e-5 * max(1, float(expected.abs().max()))
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_a_network_of_diffusers_is_read_and_written(name: str, tmp_path: Path) -> None:
    config = SMALL | VARIANTS[name]
    theirs = randomised(diffusers.UNet2DModel(**config))
    theirs.save_pretrained(tmp_path / "theirs")
    unet, diffusion = from_pretrained(tmp_path / "theirs")
    agree(unet, theirs, config)
    doubled = config.get("out_channels", 3) == 6
    assert diffusion.variance == ("learned_range" if doubled else "fixed_small")

    save_pretrained(tmp_path / "ours", unet, diffusion)
    again = diffusers.UNet2DModel.from_pretrained(tmp_path / "ours").eval()
    agree(unet, again, config)
    assert from_pretrained(tmp_path / "ours")[0].config == unet.config


def test_fractional_timesteps(tmp_path: Path) -> None:
    theirs = randomised(diffusers.UNet2DModel(**SMALL))
    theirs.save_pretrained(tmp_path)
    agree(from_pretrained(tmp_path)[0], theirs, SMALL, torch.tensor([0.5, 17.25, 998.875]))


@pytest.mark.parametrize("shape", ["matrices", "1x1 convolutions"])
def test_legacy_attention_names(shape: str, tmp_path: Path) -> None:
    config = SMALL | HO | {"attention_head_dim": None}
    theirs = randomised(diffusers.UNet2DModel(**config))
    theirs.save_pretrained(tmp_path)
    state = load_file(tmp_path / WEIGHTS)
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    legacy = {}
    for key, value in state.items():
        for new, old in names.items():
            if f".{new}." in key:
                key = key.replace(f".{new}.", f".{old}.")
                if shape != "matrices" and value.ndim == 2:
                    value = value[..., None, None]
        legacy[key] = value
    assert legacy.keys() != state.keys()
    save_file(legacy, tmp_path / WEIGHTS)
    agree(from_pretrained(tmp_path)[0], theirs, config)


def test_a_key_under_both_names_is_refused() -> None:
    name = "mid_block.attentions.0."
    with pytest.raises(ValueError, match=r"mid_block.attentions.0.to_q.weight is there twice"):
        current_names({name + "to_q.weight": torch.zeros(1), name + "query.weight": torch.ones(1)})


def test_weights_of_torch_are_read(tmp_path: Path) -> None:
    theirs = randomised(diffusers.UNet2DModel(**SMALL))
    theirs.save_pretrained(tmp_path, safe_serialization=False)
    assert not (tmp_path / WEIGHTS).exists()
    agree(from_pretrained(tmp_path)[0], theirs, SMALL)


def test_a_dropped_head_size_is_eight_and_null_is_one_head() -> None:
    config = {k: v for k, v in SMALL.items() if k != "attention_head_dim"}
    assert read_config(config, "config").attention_heads(16) == (2, 8)
    null = read_config(config | {"attention_head_dim": None}, "config")
    assert null.attention_heads(16) == (1, 16)


@pytest.mark.parametrize("flat", [True, False])
def test_pipeline(flat: bool, tmp_path: Path) -> None:
    """Both pipeline layouts are read with their scheduler, and ours gives the pipeline's images."""
    theirs = randomised(diffusers.UNet2DModel(**SMALL))
    scheduler = diffusers.DDPMScheduler(5, beta_schedule="squaredcos_cap_v2", clip_sample_range=2.0)
    pipeline = diffusers.DDPMPipeline(unet=theirs, scheduler=scheduler)
    pipeline.save_pretrained(tmp_path / "pipeline")
    folder = tmp_path / "pipeline"
    if flat:
        folder = tmp_path / "flat"
        theirs.save_pretrained(folder)
        scheduler.save_pretrained(folder)
    unet, diffusion = from_pretrained(folder)
    assert diffusion.clip == 2.0 and diffusion.num_steps == 5
    agree(unet, theirs, SMALL)

    save_pretrained(tmp_path / "ours", unet, diffusion)
    again = diffusers.DDPMPipeline.from_pretrained(tmp_path / "ours")
    images = []
    for each in (pipeline, again):
        each.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        images.append(each(2, generator, num_inference_steps=5, output_type="np").images)
    assert abs(images[0] - images[1]).max() <= 2e-5


def test_the_unet_folder_of_a_pipeline_takes_the_scheduler_beside_it(tmp_path: Path) -> None:
    scheduler = diffusers.DDPMScheduler(7)
    pipeline = diffusers.DDPMPipeline(unet=diffusers.UNet2DModel(**SMALL), scheduler=scheduler)
    pipeline.save_pretrained(tmp_path)
    assert from_pretrained(tmp_path / "unet")[1].num_steps == 7


BEYOND = {
    "1-D": {"dims": 1, "sample_size": 8},
    "3-D": {"dims": 3, "sample_size": (4, 8, 8)},
    "heads": {"num_attention_heads": 2, "num_attention_heads_upsample": 4},
    "width": {"time_proj_dim": 16},
    "pooling": {"downsample_type": "pool", "upsample_type": "nearest"},
}


@pytest.mark.parametrize("name", BEYOND)
def test_what_diffusers_cannot_express_it_refuses(name: str, tmp_path: Path) -> None:
    unet = randomised(UNet(UNetConfig(**SMALL | BEYOND[name])))
    save_pretrained(tmp_path, unet, GaussianDiffusion(NoiseSchedule.linear(10)))
    again, _ = from_pretrained(tmp_path)
    assert again.config == unet.config
    assert all(
        torch.equal(a, b) for a, b in zip(unet.parameters(), again.parameters(), strict=True)
    )
    with pytest.raises(ValueError, match=r"fastddpm.from_pretrained only"):
        diffusers.UNet2DModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("heads", [1, 4])
def test_heads_that_diffusers_can_express(heads: int, tmp_path: Path) -> None:
    fields = {"num_attention_heads": heads, "attention_head_dim": 8}
    unet = randomised(UNet(UNetConfig(**SMALL | fields)))
    save_pretrained(tmp_path, unet, GaussianDiffusion(NoiseSchedule.linear(10)))
    agree(unet, diffusers.UNet2DModel.from_pretrained(tmp_path).eval(), SMALL)
    assert from_pretrained(tmp_path)[0].config == unet.config


def test_config_is_plain_diffusers_where_it_can_be() -> None:
    written = write_config(UNetConfig(**SMALL))
    assert written["_class_name"] == "UNet2DModel" and "fastddpm" not in written
    assert json.loads(json.dumps(written))["block_out_channels"] == [8, 16]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "UNet2DConditionModel"),
        ({"cross_attention_dim": 768}, "cross_attention_dim"),
        ({"layers_per_block": "two"}, "layers_per_block: expected int, found 'two'"),
        ({"flip_sin_to_cos": 1}, "flip_sin_to_cos: expected bool, found 1"),
        ({"block_out_channels": [8, None]}, "block_out_channels"),
        ({"norm_num_groups": None}, "norm_num_groups"),
        ({"down_block_types": ["DownBlock2D", "SkipDownBlock2D"]}, "SkipDownBlock2D"),
        ({"fastddpm": 3}, "fastddpm"),
    ],
)
def test_wrong_config(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    unet = UNet(UNetConfig(**SMALL))
    save_pretrained(tmp_path, unet, GaussianDiffusion(NoiseSchedule.linear(10)))
    path = tmp_path / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        from_pretrained(tmp_path)


def test_metadata_and_empty_unknown_keys_are_ignored() -> None:
    extra = {"_name_or_path": "x", "_diffusers_version": "9", "resnet_groups": None}
    assert read_config(SMALL | extra, "config") == UNetConfig(**SMALL)
