"""OpenAI's parameter names: a linear, invertible map between a UNetModel state dict and ours.

    input_blocks.n.0   <->  conv_in, down_blocks.i.resnets.j, down_blocks.i.downsamplers.0
    input_blocks.n.1   <->  down_blocks.i.attentions.j
    middle_block.0,1,2 <->  mid_block.resnets.0, mid_block.attentions.0, mid_block.resnets.1
    output_blocks.n.*  <->  up_blocks.i.resnets.j, .attentions.j, .upsamplers.0
    time_embed, label_emb, out  <->  time_embedding, class_embedding, conv_norm_out and conv_out

Only names and layouts change, so parameters, gradients and averages all pass through it.
The one tensor that is cut is the fused projection qkv [3C, C, 1]. Its rows stand in one of two
orders of the same shape, which must be known, because a wrong one gives wrong images silently:

    legacy  [head, (q, k, v), channel]   improved-diffusion, and guided-diffusion's default
    new     [(q, k, v), head, channel]   guided-diffusion with use_new_attention_order=True

Source: openai/improved-diffusion and openai/guided-diffusion, unet.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from fastddpm.unet import UNetConfig

Kind = Literal["same", "resnet", "attention"]

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


class Pair(NamedTuple):
    """One module under both names; `heads` is 0 but for an attention block."""

    ours: str
    theirs: str
    kind: Kind
    heads: int = 0


def from_openai(
    state: Mapping[str, Tensor], config: UNetConfig, *, use_new_attention_order: bool = False
) -> dict[str, Tensor]:
    """Rename an OpenAI state dict to our parameter names.

    Keys that belong to no module of `config` are passed on unchanged, so that the check of the
    whole dict against the network can name them.

    Raises:
        ValueError: a qkv tensor is not [3C, C, 1] or [3C].
    """
    pairs = list(_pairs(config))
    names = {pair.theirs: pair for pair in pairs if pair.kind == "attention"}
    modules = {theirs: ours for ours, theirs in _modules(pairs)}
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        module, _, leaf = key.rpartition(".")
        block, _, layer = module.rpartition(".")
        pair = names.get(block)
        if pair is not None and layer == "qkv":
            parts = _cut(value, pair.heads, use_new_attention_order, key)
            for name, part in zip(("to_q", "to_k", "to_v"), parts, strict=True):
                renamed[f"{pair.ours}.{name}.{leaf}"] = part
        elif pair is not None and layer == "proj_out":
            renamed[f"{pair.ours}.to_out.0.{leaf}"] = value.flatten(1) if value.ndim > 1 else value
        elif module in modules:
            renamed[f"{modules[module]}.{leaf}"] = value
        else:
            renamed[key] = value
    return renamed


def to_openai(
    state: Mapping[str, Tensor], config: UNetConfig, *, use_new_attention_order: bool = False
) -> dict[str, Tensor]:
    """Rename our state dict (or gradients, or averages) to OpenAI's: the inverse of from_openai.

    Raises:
        ValueError: a name is not one of `config`'s, or only a part of q, k and v is present.
    """
    pairs = list(_pairs(config))
    names = {pair.ours: pair for pair in pairs if pair.kind == "attention"}
    modules = dict(_modules(pairs))
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        module, _, leaf = key.rpartition(".")
        block, _, layer = module.removesuffix(".0").rpartition(".")
        pair = names.get(block)
        if pair is not None and layer == "to_out":
            renamed[f"{pair.theirs}.proj_out.{leaf}"] = (
                value[..., None] if value.ndim > 1 else value
            )
        elif pair is not None and layer in ("to_q", "to_k", "to_v"):
            if layer == "to_q":
                parts = [state.get(f"{block}.{name}.{leaf}") for name in ("to_q", "to_k", "to_v")]
                renamed[f"{pair.theirs}.qkv.{leaf}"] = _join(
                    parts, pair.heads, use_new_attention_order, block
                )
        elif module in modules:
            renamed[f"{modules[module]}.{leaf}"] = value
        else:
            raise ValueError(f"{key!r} has no name in OpenAI's UNetModel")
    return renamed


def _cut(qkv: Tensor, heads: int, new_order: bool, key: str) -> tuple[Tensor, Tensor, Tensor]:
    """qkv [3C, C, 1] or [3C] -> q, k, v, each [C, C] or [C]."""
    rows = qkv.flatten(1) if qkv.ndim > 1 else qkv[:, None]
    if rows.shape[0] % (3 * heads):
        raise ValueError(f"{key}: expected rows in 3 x {heads} heads, found {list(qkv.shape)}")
    pattern = "(n h c) i -> n (h c) i" if new_order else "(h n c) i -> n (h c) i"
    q, k, v = rearrange(rows, pattern, n=3, h=heads)
    return (q, k, v) if qkv.ndim > 1 else (q[:, 0], k[:, 0], v[:, 0])


def _join(parts: list[Tensor | None], heads: int, new_order: bool, block: str) -> Tensor:
    """q, k, v, each [C, C] or [C] -> qkv [3C, C, 1] or [3C]."""
    present = [part for part in parts if part is not None]
    if len(present) != 3:
        raise ValueError(f"{block}: OpenAI's fused qkv needs to_q, to_k and to_v together")
    stacked = torch.stack(present)  # [3, C, C] or [3, C]
    pattern = "n (h c) ... -> (n h c) ..." if new_order else "n (h c) ... -> (h n c) ..."
    joined = rearrange(stacked, pattern, h=heads)
    return joined[..., None] if joined.ndim > 1 else joined


def _modules(pairs: list[Pair]) -> Iterator[tuple[str, str]]:
    """(our name, their name) of every module that only changes its name."""
    for pair in pairs:
        if pair.kind == "resnet":
            for ours, theirs in _RESNET.items():
                yield f"{pair.ours}.{ours}", f"{pair.theirs}.{theirs}"
        elif pair.kind == "attention":
            yield f"{pair.ours}.group_norm", f"{pair.theirs}.norm"
        else:
            yield pair.ours, pair.theirs


def _pairs(config: UNetConfig) -> Iterator[Pair]:
    """Every block of the network under both names, in OpenAI's order."""
    yield Pair("time_embedding.linear_1", "time_embed.0", "same")
    yield Pair("time_embedding.linear_2", "time_embed.2", "same")
    yield Pair("class_embedding", "label_emb", "same")
    yield Pair("conv_in", "input_blocks.0.0", "same")
    yield from _down(config)
    yield Pair("mid_block.resnets.0", "middle_block.0", "resnet")
    middle_heads = _heads(config, config.block_out_channels[-1], up=False)
    yield Pair("mid_block.attentions.0", "middle_block.1", "attention", middle_heads)
    yield Pair("mid_block.resnets.1", "middle_block.2", "resnet")
    yield from _up(config)
    yield Pair("conv_norm_out", "out.0", "same")
    yield Pair("conv_out", "out.2", "same")


def _down(config: UNetConfig) -> Iterator[Pair]:
    n = 1
    levels = zip(config.down_block_types, config.block_out_channels, strict=True)
    for i, (block_type, channels) in enumerate(levels):
        for j in range(config.layers_per_block):
            yield Pair(f"down_blocks.{i}.resnets.{j}", f"input_blocks.{n}.0", "resnet")
            if block_type.startswith("Attn"):
                heads = _heads(config, channels, up=False)
                ours = f"down_blocks.{i}.attentions.{j}"
                yield Pair(ours, f"input_blocks.{n}.1", "attention", heads)
            n += 1
        if i < len(config.block_out_channels) - 1:
            ours, theirs = f"down_blocks.{i}.downsamplers.0", f"input_blocks.{n}.0"
            yield Pair(ours, theirs, "resnet")
            yield Pair(f"{ours}.conv", f"{theirs}.op", "same")
            n += 1


def _up(config: UNetConfig) -> Iterator[Pair]:
    n = 0
    levels = zip(config.up_block_types, reversed(config.block_out_channels), strict=True)
    for i, (block_type, channels) in enumerate(levels):
        attention = block_type.startswith("Attn")
        for j in range(config.layers_per_block + 1):
            yield Pair(f"up_blocks.{i}.resnets.{j}", f"output_blocks.{n}.0", "resnet")
            if attention:
                heads = _heads(config, channels, up=True)
                ours = f"up_blocks.{i}.attentions.{j}"
                yield Pair(ours, f"output_blocks.{n}.1", "attention", heads)
            n += 1
        if i < len(config.block_out_channels) - 1:
            ours, theirs = f"up_blocks.{i}.upsamplers.0", f"output_blocks.{n - 1}.{1 + attention}"
            yield Pair(ours, theirs, "resnet")
            yield Pair(f"{ours}.conv", f"{theirs}.conv", "same")


def _heads(config: UNetConfig, channels: int, *, up: bool) -> int:
    return config.attention_heads(channels, up=up)[0]
