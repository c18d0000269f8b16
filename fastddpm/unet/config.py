"""UNetConfig: every switch of the two U-Net families, under the names of diffusers' UNet2DModel.

The Ho family (diffusers google/ddpm-*, pesser, ermongroup) and the OpenAI family (improved- and
guided-diffusion) are one network with different switches; `UNetConfig.ho` sets the former.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

DOWN_BLOCKS = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D")
UP_BLOCKS = ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")
CHOICES: dict[str, tuple[str | None, ...]] = {
    "mid_block_type": ("UNetMidBlock2D", None),
    "time_embedding_type": ("positional", "fourier", "learned"),
    "downsample_type": ("conv", "resnet", "pool"),
    "upsample_type": ("conv", "resnet", "nearest"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "class_embed_type": (None, "timestep", "identity"),
    "act_fn": ("silu", "swish", "mish", "gelu", "relu"),
}


@dataclass(frozen=True)
class UNetConfig:
    """Architecture of a `UNet`: the fields and defaults of diffusers' UNet2DModel, then our own.

    Raises:
        ValueError: on construction, naming the field, what was expected and what came.
    """

    sample_size: int | tuple[int, ...] | None = None
    in_channels: int = 3
    out_channels: int = 3
    center_input_sample: bool = False
    time_embedding_type: str = "positional"
    time_embedding_dim: int | None = None
    freq_shift: int = 0
    flip_sin_to_cos: bool = True
    down_block_types: tuple[str, ...] = ("DownBlock2D",) + ("AttnDownBlock2D",) * 3
    mid_block_type: str | None = "UNetMidBlock2D"
    up_block_types: tuple[str, ...] = ("AttnUpBlock2D",) * 3 + ("UpBlock2D",)
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    layers_per_block: int = 2
    mid_block_scale_factor: float = 1.0
    downsample_padding: int = 1
    downsample_type: str = "conv"
    upsample_type: str = "conv"
    dropout: float = 0.0
    act_fn: str = "silu"
    attention_head_dim: int | None = 8
    norm_num_groups: int = 32
    attn_norm_num_groups: int | None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: str = "default"
    add_attention: bool = True
    class_embed_type: str | None = None
    num_class_embeds: int | None = None
    num_train_timesteps: int | None = None
    # Ours from here. Spatial dimensions 1, 2 or 3; in 3-D only the last two are resampled (OpenAI).
    dims: int = 2
    # Width of the sinusoidal embedding; None: block_out_channels[0].
    time_proj_dim: int | None = None
    # A fixed number of heads on every level (OpenAI num_heads) instead of a fixed head width.
    num_attention_heads: int | None = None
    num_attention_heads_upsample: int | None = None

    def __post_init__(self) -> None:
        for name in ("down_block_types", "up_block_types"):
            types = tuple(t.removeprefix("UNetRes") for t in getattr(self, name))
            object.__setattr__(self, name, types)
        object.__setattr__(self, "block_out_channels", tuple(self.block_out_channels))
        if isinstance(self.sample_size, (list, tuple)):
            object.__setattr__(self, "sample_size", tuple(self.sample_size))
        self._check_choices()
        self._check_levels()
        self._check_numbers()

    def _check_choices(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {choices}, got {getattr(self, name)!r}")
        for name, known in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
            if unknown := [t for t in getattr(self, name) if t not in known]:
                raise ValueError(f"{name} may hold {known}, got {unknown}")

    def _check_levels(self) -> None:
        levels = {
            name: len(getattr(self, name))
            for name in ("block_out_channels", "down_block_types", "up_block_types")
        }
        if len(set(levels.values())) != 1 or not self.block_out_channels:
            raise ValueError(f"one entry per level is expected in each of {levels}")
        for channels in self.block_out_channels:
            if channels < 1 or channels % self.norm_num_groups:
                raise ValueError(
                    f"every level's channels must be a multiple of norm_num_groups="
                    f"{self.norm_num_groups}, got block_out_channels={self.block_out_channels}"
                )
        for level, up in self._attention_levels():
            channels = self.block_out_channels[level]
            heads, head_dim = self.attention_heads(channels, up=up)
            if heads < 1 or head_dim < 1:
                raise ValueError(
                    f"no attention head fits {channels} channels: attention_head_dim="
                    f"{self.attention_head_dim}, num_attention_heads={self.num_attention_heads}"
                )

    def _check_numbers(self) -> None:
        at_least_one = ("in_channels", "out_channels", "layers_per_block", "norm_num_groups")
        for name in at_least_one:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.dims not in (1, 2, 3):
            raise ValueError(f"dims must be 1, 2 or 3, got {self.dims}")
        if self.downsample_padding not in (0, 1):
            raise ValueError(f"downsample_padding must be 0 or 1, got {self.downsample_padding}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")
        if self.time_embedding_type == "learned" and not self.num_train_timesteps:
            raise ValueError("time_embedding_type='learned' needs num_train_timesteps, got None")

    def _attention_levels(self) -> list[tuple[int, bool]]:
        last = len(self.block_out_channels) - 1
        down = [(i, False) for i, t in enumerate(self.down_block_types) if t.startswith("Attn")]
        up = [(last - i, True) for i, t in enumerate(self.up_block_types) if t.startswith("Attn")]
        middle = [(last, False)] if self.mid_block_type and self.add_attention else []
        return down + middle + up

    def attention_heads(self, channels: int, *, up: bool = False) -> tuple[int, int]:
        """(heads, channels per head) of an attention layer of `channels` channels."""
        if self.num_attention_heads is not None:
            heads = (up and self.num_attention_heads_upsample) or self.num_attention_heads
            return heads, channels // heads if channels % heads == 0 else 0
        head_dim = self.attention_head_dim or channels
        return channels // head_dim, head_dim

    @property
    def time_channels(self) -> int:
        """Width of the time embedding that every residual block receives."""
        return self.time_embedding_dim or 4 * (self.time_proj_dim or self.block_out_channels[0])

    @property
    def is_conditional(self) -> bool:
        """Whether `UNet.forward` needs labels."""
        return self.class_embed_type is not None or self.num_class_embeds is not None

    @property
    def size(self) -> tuple[int, ...] | None:
        """Spatial size of a sample, one entry per dimension, or None where the config has none."""
        if isinstance(self.sample_size, int):
            return (self.sample_size,) * self.dims
        return self.sample_size

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON or TOML; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> UNetConfig:
        """A config from plain values; an unknown key is a ValueError naming the nearest field."""
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"unknown UNetConfig field {key!r}{hint}")
        return cls(**values)

    @classmethod
    def ho(
        cls,
        *,
        sample_size: int,
        channels: int = 128,
        channel_mult: tuple[int, ...] = (1, 2, 2, 2),
        attention_resolutions: tuple[int, ...] = (16,),
        **fields: Any,
    ) -> UNetConfig:
        """Ho's network (diffusers google/ddpm-*). `attention_resolutions` are map sizes in pixels.

        The defaults with sample_size=32 are the CIFAR-10 net of 35,746,307 parameters.
        """
        attends = [sample_size // 2**i in attention_resolutions for i in range(len(channel_mult))]
        settings: dict[str, Any] = {
            "sample_size": sample_size,
            "block_out_channels": tuple(channels * m for m in channel_mult),
            "down_block_types": tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
            "up_block_types": tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]),
            "attention_head_dim": None,
            "norm_eps": 1e-6,
            "flip_sin_to_cos": False,
            "freq_shift": 1,
            "downsample_padding": 0,
        }
        return cls(**(settings | fields))
