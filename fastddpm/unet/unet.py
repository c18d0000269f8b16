"""The U-Net of Ho et al. 2020 (appendix B) and of OpenAI's improved- and guided-diffusion.

    x ─ conv_in ─► down levels ─► middle ─► up levels ─ norm, silu, conv_out ─►
                      └──── skips, joined by channels ────┘

Parameter names are those of diffusers' UNet2DModel; `fastddpm.checkpoint` maps the others.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastddpm.unet.activation import ACTIVATIONS
from fastddpm.unet.attention import Attention
from fastddpm.unet.blocks import ResnetBlock
from fastddpm.unet.config import UNetConfig
from fastddpm.unet.convolution import conv, convolve
from fastddpm.unet.embedding import TimeEmbedding, class_embedding, time_projection
from fastddpm.unet.levels import DownLevel, MiddleLevel, UpLevel


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
        self.row_channels = self._place_rows()
        self.reset_parameters()

    @property
    def input_channels(self) -> int:
        """Channels of the tensor that `denoise` reads."""
        return self.config.in_channels

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """The network's output for noisy samples: denoise(x, time_rows(t, labels), t).

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
        if not isinstance(t, Tensor) or t.shape not in ((), (1,), x.shape[:1]):
            got = str(list(t.shape)) if isinstance(t, Tensor) else repr(t)
            raise ValueError(f"t must be a tensor of shape {list(x.shape[:1])}, got {got}")
        t = t.expand(x.shape[:1])
        return self.denoise(x, self.time_rows(t, labels), t)

    def time_rows(self, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """What the residual blocks read of the time and the label, side by side.

        A chain computes those of all its steps before it starts.

        Args:
            t, labels: as in `forward`.

        Returns:
            [B, R], R = `row_channels`, in the network's dtype.

        Raises:
            ValueError: for labels against the config.
        """
        embedding = self.embedded_times(t.reshape(-1))
        of_labels = self.embedded_labels(labels, len(embedding))
        return self.rows_of(embedding if of_labels is None else embedding + of_labels)

    def embedded_times(self, t: Tensor) -> Tensor:
        """The time embedding, to which that of the labels is added: [B] -> [B, time_channels]."""
        dtype = self.time_embedding.linear_1.weight.dtype
        embedding: Tensor = self.time_embedding(self.time_proj(t).to(dtype))
        return embedding

    def embedded_labels(self, labels: Tensor | None, batch: int) -> Tensor | None:
        """Labels as in `forward` -> [batch, time_channels]; None for a network that takes none."""
        self._check_labels(labels, batch)
        if labels is None or self.class_embedding is None:
            return None
        dtype = self.time_embedding.linear_1.weight.dtype
        if self.config.class_embed_type == "timestep":
            labels = self.time_proj(labels).to(dtype)
        embedding: Tensor = self.class_embedding(labels).to(dtype)
        return embedding

    def rows_of(self, embedding: Tensor) -> Tensor:
        """The time rows, [B, R], of embedded times and labels [B, time_channels]."""
        temb = self.activation(embedding)
        return torch.cat([block.time_row(temb) for block in self.residual_blocks()], dim=1)

    def row_projection(self, out: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Weight [R, time_channels] and bias [R] of all blocks' time rows; `rows_of` applies the
        activation and these. out: those of an earlier call, to be written, where no gradient is
        asked for."""
        blocks = self.residual_blocks()
        weight, bias = out or (None, None)
        weight = torch.cat([block.time_emb_proj.weight for block in blocks], out=weight)
        return weight, torch.cat([block.row_bias() for block in blocks], out=bias)

    def activation(self, x: Tensor) -> Tensor:
        """That of the config."""
        return ACTIVATIONS[self.config.act_fn](x)

    def denoise(self, x: Tensor, rows: Tensor, t: Tensor) -> Tensor:
        """The network's output where the time rows are known.

        Args:
            x: [B, C, H, W], as in `forward`.
            rows: [B, R], of `time_rows`; an expanded [1, R] where all samples share their time.
            t: [B] or [1]. Networks with Fourier features divide by it; no other reads it.

        Returns, Raises: as `forward`.
        """
        self._check_input(x, rows)
        config = self.config
        h = convolve(self.conv_in, 2 * x - 1 if config.center_input_sample else x)
        skips = [h]
        for level in self.down_blocks:
            h, outputs = level(h, rows)
            skips += outputs
        if self.mid_block is not None:
            h = self.mid_block(h, rows)
        for level in self.up_blocks:
            h = level(h, rows, skips)
        y: Tensor = self.conv_out(h.normalised(self.conv_norm_out, "silu", keep=False))
        if config.time_embedding_type == "fourier":
            y = y / t.to(y.dtype).reshape(-1, *[1] * (y.dim() - 1))
        return y

    def residual_blocks(self) -> list[ResnetBlock]:
        """All of them, in the order of their time rows, which is the order in which they run."""
        return [module for module in self.modules() if isinstance(module, ResnetBlock)]

    def _check_input(self, x: Tensor, rows: Tensor) -> None:
        dims, channels = self.config.dims, self.input_channels
        if x.dim() != dims + 2 or x.shape[1] != channels:
            wanted = f"[B, {channels}" + ", *" * dims + "]"
            raise ValueError(f"x must have shape {wanted}, got {list(x.shape)}")
        levels = len(self.config.block_out_channels)
        factor = 2 ** (levels - 1)
        changed = x.shape[2:][-2:]
        if any(size % factor for size in changed):
            raise ValueError(
                f"{levels} levels need sizes that are multiples of {factor}, got {list(changed)}"
            )
        if tuple(rows.shape) != (x.shape[0], self.row_channels):
            wanted = f"[{x.shape[0]}, {self.row_channels}]"
            raise ValueError(f"rows must have shape {wanted}, got {list(rows.shape)}")

    def _check_labels(self, labels: Tensor | None, batch: int) -> None:
        config = self.config
        if config.is_conditional != (labels is not None):
            state = "needs labels" if config.is_conditional else "takes no labels"
            raise ValueError(
                f"this network {state}, got labels={'None' if labels is None else 'given'}"
            )
        classes = config.num_class_embeds
        if labels is None or classes is None or config.class_embed_type is not None:
            return
        if labels.dtype != torch.int64 or labels.shape != (batch,):
            got = f"{labels.dtype} {list(labels.shape)}"
            raise ValueError(f"labels must be int64 [{batch}], got {got}")
        # Elsewhere the values are not read: that would wait for the device.
        readable = labels.device.type == "cpu" and not torch.compiler.is_compiling()
        if (
            readable
            and labels.numel()
            and not 0 <= int(labels.min()) <= int(labels.max()) < classes
        ):
            found = f"{int(labels.min())} to {int(labels.max())}"
            raise ValueError(f"labels must lie in [0, {classes}), got {found}")

    def _place_rows(self) -> int:
        """Give every residual block its columns of the time rows; returns how many there are."""
        start = 0
        for block in self.residual_blocks():
            block.columns = slice(start, start + block.time_emb_proj.out_features)
            start = block.columns.stop
        return start

    def reset_parameters(self) -> None:
        """Ho's initialisation (see the class); other parameters keep torch's own."""
        if self.conv_in.weight.is_meta:
            return  # Nothing to draw into.
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
