"""UNetConfig: every switch of the two U-Net families, under the names of diffusers' UNet2DModel.

The Ho family (diffusers google/ddpm-*, pesser, ermongroup) and the OpenAI family (improved- and
guided-diffusion) are one network with different switches; `UNetConfig.ho` sets the former.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

DOWN_BLOCKS = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D")
UP_BLOCKS = ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")

# Fields that count something: at least 1 where they are not None.
COUNTS = (
    *("in_channels", "out_channels", "layers_per_block", "norm_num_groups", "attention_head_dim"),
    *("attn_norm_num_groups", "time_embedding_dim", "time_proj_dim", "num_class_embeds"),
    *("num_train_timesteps", "num_attention_heads", "num_attention_heads_upsample"),
)


def _setting(default: Any, help: str, choices: tuple[str | None, ...] = ()) -> Any:
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class UNetConfig:
    """Architecture of a `UNet`: the fields and defaults of diffusers' UNet2DModel, then our own.

    Raises:
        ValueError: on construction, naming the field, what was expected and what came.
    """

    sample_size: int | tuple[int, ...] | None = _setting(None, "height and width of a sample")
    in_channels: int = _setting(3, "channels of a sample")
    out_channels: int = _setting(3, "channels of the output; twice in_channels if it learns σ²")
    center_input_sample: bool = _setting(False, "feed 2x − 1 instead of x")
    time_embedding_type: str = _setting(
        "positional", "how a timestep becomes a vector", ("positional", "fourier", "learned")
    )
    time_embedding_dim: int | None = _setting(
        None, "width of the time embedding; none: 4 × block_out_channels[0]"
    )
    freq_shift: int = _setting(0, "exponents of the embedding are divided by half − this")
    flip_sin_to_cos: bool = _setting(True, "[cos, sin] (OpenAI) instead of [sin, cos] (Ho)")
    down_block_types: tuple[str, ...] = _setting(
        ("DownBlock2D",) + ("AttnDownBlock2D",) * 3, "level types, largest map first"
    )
    mid_block_type: str | None = _setting(
        "UNetMidBlock2D", "the middle; none: no middle", ("UNetMidBlock2D", None)
    )
    up_block_types: tuple[str, ...] = _setting(
        ("AttnUpBlock2D",) * 3 + ("UpBlock2D",), "level types, smallest map first"
    )
    block_out_channels: tuple[int, ...] = _setting((224, 448, 672, 896), "channels of each level")
    layers_per_block: int = _setting(2, "residual blocks per level (one more on the way up)")
    mid_block_scale_factor: float = _setting(1.0, "sums in the middle are divided by this")
    downsample_padding: int = _setting(1, "1: both sides (OpenAI), 0: right and bottom (Ho)")
    downsample_type: str = _setting(
        "conv", "how a level halves its map", ("conv", "resnet", "pool")
    )
    upsample_type: str = _setting(
        "conv", "how a level doubles its map", ("conv", "resnet", "nearest")
    )
    dropout: float = _setting(0.0, "share of activations dropped while training")
    act_fn: str = _setting(
        "silu", "activation of residual blocks", ("silu", "swish", "mish", "gelu", "relu")
    )
    attention_head_dim: int | None = _setting(8, "channels per attention head; none: one head")
    norm_num_groups: int = _setting(32, "groups of the normalisations")
    attn_norm_num_groups: int | None = _setting(
        None, "groups of the middle attention's normalisation"
    )
    norm_eps: float = _setting(1e-5, "added to the variance of a group")
    resnet_time_scale_shift: str = _setting(
        "default", "how time enters: added, or as scale and shift", ("default", "scale_shift")
    )
    add_attention: bool = _setting(True, "attention in the middle")
    class_embed_type: str | None = _setting(
        None, "how a label becomes a vector", (None, "timestep", "identity")
    )
    num_class_embeds: int | None = _setting(None, "number of classes; none: unconditional")
    num_train_timesteps: int | None = _setting(None, "rows of a learned time embedding")
    # Ours from here.
    dims: int = _setting(2, "spatial dimensions; in 3-D only the last two are resampled (OpenAI)")
    time_proj_dim: int | None = _setting(
        None, "width of the sinusoidal embedding; none: block_out_channels[0]"
    )
    num_attention_heads: int | None = _setting(
        None, "heads on every level, instead of attention_head_dim (OpenAI)"
    )
    num_attention_heads_upsample: int | None = _setting(
        None, "heads on the way up, where they differ (OpenAI)"
    )

    def __post_init__(self) -> None:
        for name in ("down_block_types", "up_block_types"):
            types = tuple(t.removeprefix("UNetRes") for t in getattr(self, name))
            object.__setattr__(self, name, types)
        object.__setattr__(self, "block_out_channels", tuple(self.block_out_channels))
        if isinstance(self.sample_size, (list, tuple)):
            object.__setattr__(self, "sample_size", tuple(self.sample_size))
        self._check_choices()
        self._check_lengths()
        self._check_numbers()
        self._check_levels()

    def _check_choices(self) -> None:
        for setting in fields(self):
            choices, value = setting.metadata["choices"], getattr(self, setting.name)
            if choices and value not in choices:
                raise ValueError(f"{setting.name} must be one of {choices}, got {value!r}")
        for name, known in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
            if unknown := [t for t in getattr(self, name) if t not in known]:
                raise ValueError(f"{name} may hold {known}, got {unknown}")

    def _check_lengths(self) -> None:
        levels = {
            name: len(getattr(self, name))
            for name in ("block_out_channels", "down_block_types", "up_block_types")
        }
        if len(set(levels.values())) != 1 or not self.block_out_channels:
            raise ValueError(f"one entry per level is expected in each of {levels}")

    def _check_levels(self) -> None:
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
        for name in COUNTS:
            count = getattr(self, name)
            if count is not None and count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        for name in ("norm_eps", "mid_block_scale_factor"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        half = (self.time_proj_dim or self.block_out_channels[0]) // 2
        if self.time_embedding_type == "positional" and not self.freq_shift < half:
            raise ValueError(f"freq_shift must be below {half} here, got {self.freq_shift}")
        if self.dims not in (1, 2, 3):
            raise ValueError(f"dims must be 1, 2 or 3, got {self.dims}")
        if self.downsample_padding not in (0, 1):
            raise ValueError(f"downsample_padding must be 0 or 1, got {self.downsample_padding}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")
        if self.time_embedding_type == "learned" and not self.num_train_timesteps:
            raise ValueError("time_embedding_type='learned' needs num_train_timesteps, got None")
        if self.size is not None and (len(self.size) != self.dims or min(self.size) < 1):
            raise ValueError(
                f"sample_size must be {self.dims} sizes of at least 1, got {self.sample_size}"
            )

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
