"""Small networks with random weights, one for each switch of the two U-Net families."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastddpm.unet import UNet, UNetConfig

SMALL: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "attention_head_dim": 4,
}

# What each network changes in SMALL.
VARIANTS: dict[str, dict[str, Any]] = {
    "small": {},
    "ho": {
        "downsample_padding": 0,
        "attention_head_dim": None,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
    },
    "openai": {
        "resnet_time_scale_shift": "scale_shift",
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "attn_norm_num_groups": 4,
        "out_channels": 6,
        "num_attention_heads": 4,
        "num_attention_heads_upsample": 2,
    },
    "scale_shift": {"resnet_time_scale_shift": "scale_shift"},
    "conditional": {"num_class_embeds": 10},
    "label_is_an_embedding": {"class_embed_type": "identity"},
    "label_is_a_time": {"class_embed_type": "timestep"},
    "fourier": {"time_embedding_type": "fourier"},
    "learned_times": {"time_embedding_type": "learned", "num_train_timesteps": 1000},
    "mish": {"act_fn": "mish"},
    "pool": {"downsample_type": "pool", "upsample_type": "nearest"},
    "no_middle": {"mid_block_type": None},
    "no_attention_in_the_middle": {"add_attention": False},
    "scaled_middle": {"mid_block_scale_factor": 1.4},
    "gray_centred": {"in_channels": 1, "out_channels": 1, "center_input_sample": True},
    "nine_channels": {"in_channels": 9},
    "1d": {"dims": 1, "downsample_padding": 0},
    "3d": {"dims": 3, "downsample_padding": 0},
}


def network(**fields: Any) -> UNet:
    """A network with every parameter random (a fresh one is the zero function)."""
    torch.manual_seed(0)
    unet = UNet(UNetConfig.from_dict(SMALL | fields)).eval()
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.normal_(0, 0.2)
    return unet


def images(unet: UNet, batch: int = 2) -> Tensor:
    """What the network takes, float32 [batch, C, 8, 8]."""
    config = unet.config
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, config.in_channels, *[8] * config.dims, generator=generator)


def conditions(unet: UNet) -> tuple[Tensor, Tensor | None]:
    """Timesteps and labels of a batch of two, as the network takes them."""
    config = unet.config
    labels = {
        None: torch.tensor([1, 7]) if config.is_conditional else None,
        "identity": torch.linspace(-1, 1, 2 * config.time_channels).reshape(2, -1),
        "timestep": torch.tensor([2.0, 30.0]),
    }
    return torch.tensor([3, 700]), labels[config.class_embed_type]
