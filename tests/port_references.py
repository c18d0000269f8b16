"""Ho's network as pesser's port and as pytorch-ddpm compute it, once more in plain functions.

Each takes a state dict under the port's own names, so that what a loader makes of it can be
compared. `pesser_state` and `numbered_state` draw one, with the names and shapes of each code.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]


class _Layers:
    """Layers by the names of a state dict."""

    def __init__(self, state: State, eps: float) -> None:
        self.state, self.eps = state, eps

    def has(self, name: str) -> bool:
        return f"{name}.weight" in self.state

    def both(self, name: str) -> tuple[Tensor, Tensor]:
        return self.state[f"{name}.weight"], self.state[f"{name}.bias"]

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, *self.both(name))

    def conv(self, name: str, x: Tensor, stride: int = 1, padding: int | None = None) -> Tensor:
        weight, bias = self.both(name)
        default = weight.shape[-1] // 2
        return F.conv2d(x, weight, bias, stride, default if padding is None else padding)

    def norm(self, name: str, x: Tensor) -> Tensor:
        return F.group_norm(x, 32, *self.both(name), self.eps)

    def attend(self, x: Tensor, norm: str, q: str, k: str, v: str, out: str) -> Tensor:
        B, C, H, W = x.shape
        h = self.norm(norm, x)
        queries, keys, values = (self.conv(name, h).reshape(B, C, H * W) for name in (q, k, v))
        scores = torch.einsum("bci,bcj->bij", queries, keys) * C**-0.5
        mixed = torch.einsum("bij,bcj->bci", scores.softmax(dim=2), values)
        return x + self.conv(out, mixed.reshape(B, C, H, W))


def double(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


# ---- pesser, ermongroup


def pesser_forward(state: State, x: Tensor, t: Tensor) -> Tensor:
    net = _Layers(state, eps=1e-6)
    ch = state["conv_in.weight"].shape[0]
    angles = t[:, None] * torch.exp(-math.log(10000) / (ch // 2 - 1) * torch.arange(ch // 2))
    temb = net.linear("temb.dense.0", torch.cat([angles.sin(), angles.cos()], dim=1))
    temb = F.silu(net.linear("temb.dense.1", F.silu(temb)))

    def block(name: str, x: Tensor) -> Tensor:
        h = net.conv(f"{name}.conv1", F.silu(net.norm(f"{name}.norm1", x)))
        h = h + net.linear(f"{name}.temb_proj", temb)[:, :, None, None]
        h = net.conv(f"{name}.conv2", F.silu(net.norm(f"{name}.norm2", h)))
        return h + (net.conv(f"{name}.nin_shortcut", x) if net.has(f"{name}.nin_shortcut") else x)

    def attend(name: str, x: Tensor) -> Tensor:
        return net.attend(x, *(f"{name}.{part}" for part in ("norm", "q", "k", "v", "proj_out")))

    def layer(level: str, j: int, x: Tensor) -> Tensor:
        x = block(f"{level}.block.{j}", x)
        return attend(f"{level}.attn.{j}", x) if net.has(f"{level}.attn.{j}.q") else x

    hs, level = [net.conv("conv_in", x)], 0
    while net.has(f"down.{level}.block.0.conv1"):
        j = 0
        while net.has(f"down.{level}.block.{j}.conv1"):
            hs.append(layer(f"down.{level}", j, hs[-1]))
            j += 1
        level += 1
        if net.has(f"down.{level}.block.0.conv1"):
            name = f"down.{level - 1}.downsample.conv"
            padded = F.pad(hs[-1], (0, 1, 0, 1))
            hs.append(
                net.conv(name, padded, stride=2, padding=0)
                if net.has(name)
                else F.avg_pool2d(hs[-1], 2)
            )
    h = block("mid.block_2", attend("mid.attn_1", block("mid.block_1", hs[-1])))
    for i in reversed(range(level)):
        j = 0
        while net.has(f"up.{i}.block.{j}.conv1"):
            h = layer(f"up.{i}", j, torch.cat([h, hs.pop()], dim=1))
            j += 1
        if i:
            h = double(h)
            name = f"up.{i}.upsample.conv"
            h = net.conv(name, h) if net.has(name) else h
    return net.conv("conv_out", F.silu(net.norm("norm_out", h)))


def pesser_state(
    ch: int = 32,
    ch_mult: tuple[int, ...] = (1, 2),
    layers: int = 1,
    attends: tuple[int, ...] = (1,),
    in_channels: int = 3,
    out_channels: int = 3,
    resamp_with_conv: bool = True,
) -> State:
    """A drawn state dict with the names, shapes and order of pesser's Model."""
    draw = _Draw()
    draw.linear("temb.dense.0", ch, 4 * ch)
    draw.linear("temb.dense.1", 4 * ch, 4 * ch)
    draw.conv("conv_in", in_channels, ch)

    def block(name: str, inner: int, outer: int) -> None:
        draw.norm(f"{name}.norm1", inner)
        draw.conv(f"{name}.conv1", inner, outer)
        draw.linear(f"{name}.temb_proj", 4 * ch, outer)
        draw.norm(f"{name}.norm2", outer)
        draw.conv(f"{name}.conv2", outer, outer)
        if inner != outer:
            draw.conv(f"{name}.nin_shortcut", inner, outer, 1)

    def attend(name: str, channels: int) -> None:
        draw.norm(f"{name}.norm", channels)
        for part in ("q", "k", "v", "proj_out"):
            draw.conv(f"{name}.{part}", channels, channels, 1)

    skips, now = [ch], ch
    for i, mult in enumerate(ch_mult):
        for j in range(layers):
            block(f"down.{i}.block.{j}", now, ch * mult)
            now = ch * mult
            skips.append(now)
            if i in attends:
                attend(f"down.{i}.attn.{j}", now)
        if i < len(ch_mult) - 1:
            skips.append(now)
            if resamp_with_conv:
                draw.conv(f"down.{i}.downsample.conv", now, now)
    block("mid.block_1", now, now)
    attend("mid.attn_1", now)
    block("mid.block_2", now, now)
    for i, mult in reversed(list(enumerate(ch_mult))):
        for j in range(layers + 1):
            block(f"up.{i}.block.{j}", now + skips.pop(), ch * mult)
            now = ch * mult
            if i in attends:
                attend(f"up.{i}.attn.{j}", now)
        if i and resamp_with_conv:
            draw.conv(f"up.{i}.upsample.conv", now, now)
    draw.norm("norm_out", now)
    draw.conv("conv_out", now, out_channels)
    return draw.state


# ---- pytorch-ddpm


def numbered_forward(state: State, x: Tensor, t: Tensor) -> Tensor:
    net = _Layers(state, eps=1e-5)
    temb = net.linear("time_embedding.timembedding.1", state[_TABLE][t])
    temb = F.silu(net.linear("time_embedding.timembedding.3", F.silu(temb)))

    def block(name: str, x: Tensor) -> Tensor:
        h = net.conv(f"{name}.block1.2", F.silu(net.norm(f"{name}.block1.0", x)))
        h = h + net.linear(f"{name}.temb_proj.1", temb)[:, :, None, None]
        h = net.conv(f"{name}.block2.3", F.silu(net.norm(f"{name}.block2.0", h)))
        h = h + (net.conv(f"{name}.shortcut", x) if net.has(f"{name}.shortcut") else x)
        if not net.has(f"{name}.attn.proj_q"):
            return h
        parts = ("group_norm", "proj_q", "proj_k", "proj_v", "proj")
        return net.attend(h, *(f"{name}.attn.{part}" for part in parts))

    hs, n = [net.conv("head", x)], 0
    while net.has(f"downblocks.{n}.block1.2") or net.has(f"downblocks.{n}.main"):
        name = f"downblocks.{n}"
        down = net.has(f"{name}.main")
        hs.append(net.conv(f"{name}.main", hs[-1], stride=2) if down else block(name, hs[-1]))
        n += 1
    h, n = block("middleblocks.1", block("middleblocks.0", hs[-1])), 0
    while net.has(f"upblocks.{n}.block1.2") or net.has(f"upblocks.{n}.main"):
        name = f"upblocks.{n}"
        up = net.has(f"{name}.main")
        h = net.conv(f"{name}.main", double(h)) if up else block(name, torch.cat([h, hs.pop()], 1))
        n += 1
    return net.conv("tail.2", F.silu(net.norm("tail.0", h)))


_TABLE = "time_embedding.timembedding.0.weight"


def numbered_state(
    T: int = 1000,
    ch: int = 32,
    ch_mult: tuple[int, ...] = (1, 2),
    layers: int = 1,
    attends: tuple[int, ...] = (1,),
) -> State:
    """A drawn state dict with the names, shapes and order of pytorch-ddpm's UNet."""
    draw = _Draw()
    angles = torch.arange(T)[:, None] * torch.exp(-math.log(10000) * torch.arange(0, ch, 2) / ch)
    draw.state[_TABLE] = torch.stack([angles.sin(), angles.cos()], dim=-1).view(T, ch)
    draw.linear("time_embedding.timembedding.1", ch, 4 * ch)
    draw.linear("time_embedding.timembedding.3", 4 * ch, 4 * ch)
    draw.conv("head", 3, ch)

    def block(name: str, inner: int, outer: int, attn: bool) -> None:
        draw.norm(f"{name}.block1.0", inner)
        draw.conv(f"{name}.block1.2", inner, outer)
        draw.linear(f"{name}.temb_proj.1", 4 * ch, outer)
        draw.norm(f"{name}.block2.0", outer)
        draw.conv(f"{name}.block2.3", outer, outer)
        if inner != outer:
            draw.conv(f"{name}.shortcut", inner, outer, 1)
        if attn:
            draw.norm(f"{name}.attn.group_norm", outer)
            for part in ("proj_q", "proj_k", "proj_v", "proj"):
                draw.conv(f"{name}.attn.{part}", outer, outer, 1)

    skips, now, n = [ch], ch, 0
    for i, mult in enumerate(ch_mult):
        for _ in range(layers):
            block(f"downblocks.{n}", now, ch * mult, i in attends)
            now, n = ch * mult, n + 1
            skips.append(now)
        if i < len(ch_mult) - 1:
            draw.conv(f"downblocks.{n}.main", now, now)
            n += 1
            skips.append(now)
    block("middleblocks.0", now, now, True)
    block("middleblocks.1", now, now, False)
    n = 0
    for i, mult in reversed(list(enumerate(ch_mult))):
        for _ in range(layers + 1):
            block(f"upblocks.{n}", now + skips.pop(), ch * mult, i in attends)
            now, n = ch * mult, n + 1
        if i:
            draw.conv(f"upblocks.{n}.main", now, now)
            n += 1
    draw.norm("tail.0", now)
    draw.conv("tail.2", now, 3)
    return draw.state


class _Draw:
    """Layers drawn into a state dict."""

    def __init__(self) -> None:
        self.state: State = {}
        self.generator = torch.Generator().manual_seed(0)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def linear(self, name: str, inner: int, outer: int) -> None:
        self.state[f"{name}.weight"] = self._normal(outer, inner) * inner**-0.5
        self.state[f"{name}.bias"] = self._normal(outer) * 0.1

    def conv(self, name: str, inner: int, outer: int, size: int = 3) -> None:
        weight = self._normal(outer, inner, size, size)
        self.state[f"{name}.weight"] = weight * (inner * size * size) ** -0.5
        self.state[f"{name}.bias"] = self._normal(outer) * 0.1

    def norm(self, name: str, channels: int) -> None:
        self.state[f"{name}.weight"] = 1 + self._normal(channels) * 0.2
        self.state[f"{name}.bias"] = self._normal(channels) * 0.1
