"""The U-Net of Ho et al. 2020 (appendix B) and of OpenAI's improved- and guided-diffusion.

    x ─ conv_in ─► down levels ─► middle ─► up levels ─ norm, silu, conv_out ─►
                      └──── skips, joined by channels ────┘

Parameter names are those of diffusers' UNet2DModel; `fastddpm.checkpoint` maps the others.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastddpm import ops
from fastddpm.unet.attention import Attention
from fastddpm.unet.blocks import ACTIVATIONS, DownLevel, MiddleLevel, ResnetBlock, UpLevel, conv
from fastddpm.unet.config import UNetConfig
from fastddpm.unet.embedding import TimeEmbedding, class_embedding, time_projection


class UNet(nn.Module):
    """A network eps(x_t, t), or x_0 or v, over samples [B, C, H, W] (or 1-D and 3-D ones).

    A fresh network has Ho's initialisation: variance-scaled uniform weights, and zeros in the last
    layer of every residual branch and of the network, so that it starts as the zero function.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.block_out_channels
        self.conv_in = conv(config.dims, config.in_channels, channels[0])
        self.time_proj, projection_dim = time_projection(config)
        self.time_embedding = TimeEmbedding(projection_dim, config.time_channels)
        self.class_embedding = class_embedding(config, projection_dim)
        self.down_blocks = nn.ModuleList(_down_levels(config))
        has_middle = config.mid_block_type is not None
        self.mid_block = MiddleLevel(config, channels[-1]) if has_middle else None
        self.up_blocks = nn.ModuleList(_up_levels(config))
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, channels[0], eps=config.norm_eps)
        self.conv_out = conv(config.dims, channels[0], config.out_channels)
        self.reset_parameters()

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """The network's output for noisy samples.

        Args:
            x: [B, C, H, W] (spatial dimensions per `config.dims`), in the network's dtype.
            t: [B] or [], integer or floating: original timesteps, as the schedule counts them.
            labels: [B] int64 class labels, required exactly when the network is conditional;
                class_embed_type "identity" takes [B, time_channels], "timestep" [B] floating.

        Returns:
            [B, C', H, W] in the dtype of x.

        Raises:
            ValueError: for shapes the levels do not allow, or labels against the config.
        """
        self._check(x, t, labels)
        config = self.config
        t = t.expand(x.shape[0])
        temb = self._time_row(t, labels, self.time_embedding.linear_1.weight.dtype)
        h = self.conv_in(2 * x - 1 if config.center_input_sample else x)
        skips = [h]
        for level in self.down_blocks:
            h, outputs = level(h, temb)
            skips += outputs
        if self.mid_block is not None:
            h = self.mid_block(h, temb)
        for level in self.up_blocks:
            h = level(h, temb, skips)
        norm = self.conv_norm_out
        h = ops.group_norm_silu(h, norm.weight, norm.bias, norm.num_groups, norm.eps)
        y: Tensor = self.conv_out(h)
        if config.time_embedding_type == "fourier":
            y = y / t.to(y.dtype).reshape(-1, *[1] * (y.dim() - 1))
        return y

    def _time_row(self, t: Tensor, labels: Tensor | None, dtype: torch.dtype) -> Tensor:
        """activation(time embedding + class embedding): [B, time_channels]."""
        emb = self.time_embedding(self.time_proj(t).to(dtype))
        if self.class_embedding is not None and labels is not None:
            if self.config.class_embed_type == "timestep":
                labels = self.time_proj(labels).to(dtype)
            emb = emb + self.class_embedding(labels).to(dtype)
        row: Tensor = ACTIVATIONS[self.config.act_fn](emb)
        return row

    def _check(self, x: Tensor, t: Tensor, labels: Tensor | None) -> None:
        config = self.config
        if x.dim() != config.dims + 2 or x.shape[1] != config.in_channels:
            wanted = f"[B, {config.in_channels}" + ", *" * config.dims + "]"
            raise ValueError(f"x must have shape {wanted}, got {list(x.shape)}")
        factor = 2 ** (len(config.block_out_channels) - 1)
        changed = x.shape[2:][-2:]
        if any(size % factor for size in changed):
            raise ValueError(
                f"{len(config.block_out_channels)} levels need sizes that are multiples of "
                f"{factor}, got {list(changed)}"
            )
        if not isinstance(t, Tensor) or t.shape not in ((), (1,), (x.shape[0],)):
            got = str(list(t.shape)) if isinstance(t, Tensor) else repr(t)
            raise ValueError(f"t must be a tensor of shape [{x.shape[0]}], got {got}")
        if config.is_conditional != (labels is not None):
            state = "needs labels" if config.is_conditional else "takes no labels"
            raise ValueError(
                f"this network {state}, got labels={'None' if labels is None else 'given'}"
            )
        classes = config.num_class_embeds
        if labels is None or classes is None or config.class_embed_type is not None:
            return
        if labels.dtype != torch.int64 or labels.shape != x.shape[:1]:
            got = f"{labels.dtype} {list(labels.shape)}"
            raise ValueError(f"labels must be int64 [{x.shape[0]}], got {got}")
        # Elsewhere the values are not read: that would wait for the device.
        readable = labels.device.type == "cpu" and not torch.compiler.is_compiling()
        if (
            readable
            and labels.numel()
            and not 0 <= int(labels.min()) <= int(labels.max()) < classes
        ):
            found = f"{int(labels.min())} to {int(labels.max())}"
            raise ValueError(f"labels must lie in [0, {classes}), got {found}")

    def reset_parameters(self) -> None:
        """Ho's initialisation (see the class); other parameters keep torch's own."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
                _zero_(module.bias)
                # Variance 2 / (fan_in + fan_out): the scaling of Ho's code.
                nn.init.xavier_uniform_(module.weight)
        for module in self.modules():
            if isinstance(module, ResnetBlock):
                _zero_(module.conv2.weight)
            elif isinstance(module, Attention):
                _zero_(module.to_out[0].weight)
        _zero_(self.conv_out.weight)


def _zero_(parameter: Tensor | nn.Module | None) -> None:
    if isinstance(parameter, Tensor):
        nn.init.zeros_(parameter)


def _down_levels(config: UNetConfig) -> list[DownLevel]:
    channels = config.block_out_channels
    inputs = (channels[0], *channels[:-1])
    last = len(channels) - 1
    return [
        DownLevel(config, kind, inputs[i], channels[i], last=i == last)
        for i, kind in enumerate(config.down_block_types)
    ]


def _up_levels(config: UNetConfig) -> list[UpLevel]:
    channels = config.block_out_channels[::-1]
    inputs = (channels[0], *channels[:-1])
    # The last skip of a level was made one level higher; the top one is conv_in's output.
    skips = (*channels[1:], channels[-1])
    last = len(channels) - 1
    return [
        UpLevel(config, kind, inputs[i], channels[i], skips[i], last=i == last)
        for i, kind in enumerate(config.up_block_types)
    ]
