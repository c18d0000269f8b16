"""Ho's network in other people's code: their parameter names, and its settings from the shapes.

    pesser, ermongroup   down.1.block.0.conv1.weight    (1 × 1 convolutions for q, k, v)
    Ho's TensorFlow      model/down_1/block_0/conv1/W   the same modules (`ho_bundle`)
    pytorch-ddpm         downblocks.3.block1.2.weight   one running number over all levels

The three say nothing of their settings in a file, and need not: levels, blocks, widths, attention
and resampling show in the keys, and the rest is fixed in each code.

Source: pesser/pytorch_diffusion, ermongroup/ddim, w86763777/pytorch-ddpm.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from fastddpm.checkpoint.fit import Switches, check_fit, fill, skeleton
from fastddpm.unet import UNet, UNetConfig

# The size at which every published configuration attends, on the level that does.
ATTENTION_SIZE = 16


class Place(NamedTuple):
    """Where a block stands: "down", "mid" or "up", its level from the top, its number there."""

    way: str
    level: int
    kind: str
    number: int


@dataclass(frozen=True)
class Survey:
    """What the keys and shapes of a state dict say."""

    in_channels: int
    out_channels: int
    channels: tuple[int, ...]
    layers: int
    attends: tuple[bool, ...]
    has_resampling: bool = True


@dataclass(frozen=True)
class Port:
    """One code's names for the modules, and the settings that are fixed in it.

    first: a key that every state dict of this code has, and no other's.
    block: the name of the block at a place.
    """

    name: str
    first: str
    top: Mapping[str, str]
    layers: Mapping[str, str]
    block: Callable[[Place, Survey], str]
    survey: Callable[[Mapping[str, Tensor]], Survey]
    settings: Mapping[str, Any]


def read_network(
    port: Port,
    state: Mapping[str, Tensor],
    source: str,
    sample_size: int | None = None,
    dropout: float = 0.0,
) -> UNet:
    """The network of a state dict with this port's names; the last two are not in its shapes.

    Raises:
        ValueError: keys are missing or left over, or shapes disagree with each other.
    """
    survey = _survey(port, state, source)
    config = config_of(port, survey, source, sample_size, dropout)
    unet = skeleton(config, source)
    expected = unet.state_dict()
    names = theirs(port, survey, expected)
    wanted = {names[key]: as_matrix(value) for key, value in expected.items()}
    found = {key: as_matrix(value) for key, value in state.items()}
    check_fit(found, wanted, f"{source} ({port.name})", _SWITCHES)
    return fill(unet, {key: found[names[key]].reshape(expected[key].shape) for key in expected})


def theirs(port: Port, survey: Survey, keys: Mapping[str, Any]) -> dict[str, str]:
    """Our parameter name -> the port's, for every one of `keys`."""
    return {key: _their_key(port, survey, key) for key in keys}


def as_matrix(value: Tensor) -> Tensor:
    """A 1 × 1 convolution as the matrix that it is; anything else as it came."""
    return value[:, :, 0, 0] if value.ndim == 4 and value.shape[2:] == (1, 1) else value


def size(state: Mapping[str, Tensor], key: str, axis: int = 0) -> int:
    """One size of a tensor. Raises ValueError if there is no such tensor or axis."""
    if key not in state:
        raise ValueError(f"expected a tensor {key}, found none")
    if state[key].ndim <= axis:
        raise ValueError(f"{key}: expected {axis + 1} sizes, found {list(state[key].shape)}")
    return state[key].shape[axis]


def count(state: Mapping[str, Tensor], key: str) -> int:
    """How many of key.format(0), key.format(1), ... there are."""
    n = 0
    while key.format(n) in state:
        n += 1
    return n


def _survey(port: Port, state: Mapping[str, Tensor], source: str) -> Survey:
    try:
        return port.survey(state)
    except ValueError as error:
        raise ValueError(f"{source} ({port.name}): {error}") from error


def config_of(
    port: Port, survey: Survey, source: str, sample_size: int | None, dropout: float
) -> UNetConfig:
    """The network that a survey describes, with this port's fixed settings.

    Raises ValueError if there is no such network.
    """
    attending = [level for level, attends in enumerate(survey.attends) if attends]
    if sample_size is None and len(attending) == 1:
        sample_size = ATTENTION_SIZE << attending[0]
    kinds = ["AttnDownBlock2D" if attends else "DownBlock2D" for attends in survey.attends]
    try:
        return UNetConfig(
            sample_size=sample_size,
            in_channels=survey.in_channels,
            out_channels=survey.out_channels,
            block_out_channels=survey.channels,
            layers_per_block=survey.layers,
            down_block_types=tuple(kinds),
            up_block_types=tuple(kind.replace("Down", "Up") for kind in kinds[::-1]),
            downsample_type="conv" if survey.has_resampling else "pool",
            upsample_type="conv" if survey.has_resampling else "nearest",
            attention_head_dim=None,
            dropout=dropout,
            **port.settings,
        )
    except ValueError as error:
        raise ValueError(f"{source} ({port.name}): {error}") from error


_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)")
_MIDDLE = re.compile(r"mid_block\.(\w+)\.(\d+)\.(.+)")


def _their_key(port: Port, survey: Survey, key: str) -> str:
    module, _, leaf = key.rpartition(".")
    if module in port.top:
        return f"{port.top[module]}.{leaf}"
    if match := _BLOCK.fullmatch(module):
        way, level, kind, number, layer = match.groups()
        # Ours are numbered in the order in which they run, theirs by their size.
        own = int(level) if way == "down" else len(survey.channels) - 1 - int(level)
        place = Place(way, own, kind, int(number))
    elif match := _MIDDLE.fullmatch(module):
        kind, number, layer = match.groups()
        place = Place("mid", 0, kind, int(number))
    else:
        raise ValueError(f"{key!r} has no name in {port.name}")
    return f"{port.block(place, survey)}.{port.layers[layer]}.{leaf}"


# ---- pesser and ermongroup, and with other spellings Ho


def _pesser_block(place: Place, survey: Survey) -> str:
    if place.way == "mid":
        return f"mid.block_{place.number + 1}" if place.kind == "resnets" else "mid.attn_1"
    named = {
        "resnets": f"block.{place.number}",
        "attentions": f"attn.{place.number}",
        "downsamplers": "downsample",
        "upsamplers": "upsample",
    }
    return f"{place.way}.{place.level}.{named[place.kind]}"


def _pesser_survey(state: Mapping[str, Tensor]) -> Survey:
    levels = range(count(state, "down.{}.block.0.conv1.weight"))
    return Survey(
        in_channels=size(state, "conv_in.weight", 1),
        out_channels=size(state, "conv_out.weight"),
        channels=tuple(size(state, f"down.{i}.block.0.conv1.weight") for i in levels),
        layers=count(state, "down.0.block.{}.conv1.weight"),
        attends=tuple(f"down.{i}.attn.0.q.weight" in state for i in levels),
        has_resampling=len(levels) < 2 or "down.0.downsample.conv.weight" in state,
    )


PESSER = Port(
    name="names of pesser's port",
    first="temb.dense.0.weight",
    top={
        "time_embedding.linear_1": "temb.dense.0",
        "time_embedding.linear_2": "temb.dense.1",
        "conv_in": "conv_in",
        "conv_norm_out": "norm_out",
        "conv_out": "conv_out",
    },
    layers={
        **{name: name for name in ("norm1", "conv1", "norm2", "conv2", "conv")},
        "time_emb_proj": "temb_proj",
        "conv_shortcut": "nin_shortcut",
        "group_norm": "norm",
        "to_q": "q",
        "to_k": "k",
        "to_v": "v",
        "to_out.0": "proj_out",
    },
    block=_pesser_block,
    survey=_pesser_survey,
    settings={
        "norm_eps": 1e-6,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "downsample_padding": 0,
    },
)


# ---- pytorch-ddpm


def _numbered_block(place: Place, survey: Survey) -> str:
    own_attention = ".attn" if place.kind == "attentions" else ""
    if place.way == "mid":
        return f"middleblocks.{place.number}{own_attention}"
    # A level is its residual blocks and the resampling behind them.
    blocks = survey.layers + (place.way == "up")
    passed = place.level if place.way == "down" else len(survey.channels) - 1 - place.level
    within = blocks if place.kind.endswith("samplers") else place.number
    return f"{place.way}blocks.{passed * (blocks + 1) + within}{own_attention}"


def _numbered_survey(state: Mapping[str, Tensor]) -> Survey:
    layers = count(state, "downblocks.{}.block1.2.weight")
    if not layers:
        raise ValueError("expected a tensor downblocks.0.block1.2.weight, found none")
    firsts = [0]
    while f"downblocks.{firsts[-1] + layers + 1}.block1.2.weight" in state:
        firsts.append(firsts[-1] + layers + 1)
    return Survey(
        in_channels=size(state, "head.weight", 1),
        out_channels=size(state, "tail.2.weight"),
        channels=tuple(size(state, f"downblocks.{n}.block1.2.weight") for n in firsts),
        layers=layers,
        attends=tuple(f"downblocks.{n}.attn.proj_q.weight" in state for n in firsts),
    )


PYTORCH_DDPM = Port(
    name="names of pytorch-ddpm",
    first="time_embedding.timembedding.1.weight",
    top={
        "time_embedding.linear_1": "time_embedding.timembedding.1",
        "time_embedding.linear_2": "time_embedding.timembedding.3",
        "conv_in": "head",
        "conv_norm_out": "tail.0",
        "conv_out": "tail.2",
    },
    layers={
        "norm1": "block1.0",
        "conv1": "block1.2",
        "time_emb_proj": "temb_proj.1",
        "norm2": "block2.0",
        "conv2": "block2.3",
        "conv_shortcut": "shortcut",
        "group_norm": "group_norm",
        "to_q": "proj_q",
        "to_k": "proj_k",
        "to_v": "proj_v",
        "to_out.0": "proj",
        "conv": "main",
    },
    block=_numbered_block,
    survey=_numbered_survey,
    settings={"norm_eps": 1e-5, "flip_sin_to_cos": False, "freq_shift": 0},
)

_SWITCHES: Switches = ((r"", "another configuration of this network than its other keys show"),)
