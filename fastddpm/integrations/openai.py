"""OpenAI's UNetModel (improved- and guided-diffusion), in memory -> our U-Net, and a drop-in.

Its constructor keeps most of its arguments as attributes; the rest shows in its blocks:

    use_scale_shift_norm    a residual block's attribute
    resblock_updown         a residual block among the down path's blocks that resamples
    dims                    the type of the first convolution
    new attention order     guided-diffusion's QKVAttention, which has n_heads; the old order:
                            QKVAttentionLegacy, and improved-diffusion's QKVAttention without
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fastddpm.checkpoint.fit import OPENAI_SWITCHES, check_fit, fill, shapes, skeleton
from fastddpm.checkpoint.openai_kwargs import UNetModel, unet_config
from fastddpm.checkpoint.openai_names import from_openai, to_openai
from fastddpm.integrations.accelerated import Accelerated
from fastddpm.unet import UNet, UNetConfig

CLASS = "UNetModel"
_DIMS = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
# Attributes without which a class of this name is somebody else's.
_ATTRIBUTES = ("model_channels", "num_res_blocks", "attention_resolutions", "channel_mult")


def is_openai_model(model: nn.Module) -> bool:
    """Whether this is a UNetModel itself; what derives from it may compute something else."""
    parts = ("input_blocks", "middle_block", "output_blocks", "time_embed", "out")
    return type(model).__name__ == CLASS and all(hasattr(model, a) for a in (*parts, *_ATTRIBUTES))


class OpenAIReader:
    """Reads a UNetModel: its configuration once, its weights whenever asked.

    Raises ValueError if the instance does not fit what its attributes say.
    """

    def __init__(self, model: nn.Module) -> None:
        arguments = _arguments(model)
        self.config: UNetConfig = unet_config(arguments)
        self._new_order = arguments.use_new_attention_order
        state = model.state_dict()
        expected = to_openai(shapes(self.config), self.config)
        check_fit(state, expected, f"this {CLASS}", OPENAI_SWITCHES)

    def weights(self, model: nn.Module) -> Mapping[str, Tensor]:
        """Its state dict under our names."""
        return from_openai(model.state_dict(), self.config, use_new_attention_order=self._new_order)

    def unet(self, model: nn.Module) -> UNet:
        """The same network, float32."""
        return fill(skeleton(self.config), self.weights(model))


def _arguments(model: nn.Module) -> UNetModel:
    """The constructor's arguments, from what it left behind."""
    seen: Any = model
    blocks = [m for m in model.modules() if hasattr(m, "emb_layers")]
    attentions = [m.attention for m in model.modules() if hasattr(m, "attention")]
    first = seen.input_blocks[0][0]
    return UNetModel(
        in_channels=seen.in_channels,
        out_channels=seen.out_channels,
        dropout=seen.dropout,
        model_channels=seen.model_channels,
        num_res_blocks=seen.num_res_blocks,
        attention_resolutions=tuple(int(r) for r in seen.attention_resolutions),
        image_size=getattr(model, "image_size", None),
        channel_mult=tuple(float(m) for m in seen.channel_mult),
        conv_resample=getattr(model, "conv_resample", True),
        dims=next((n for kind, n in _DIMS.items() if isinstance(first, kind)), 2),
        num_classes=getattr(model, "num_classes", None),
        num_heads=getattr(model, "num_heads", 1),
        num_head_channels=getattr(model, "num_head_channels", -1),
        num_heads_upsample=getattr(model, "num_heads_upsample", -1),
        use_scale_shift_norm=any(getattr(b, "use_scale_shift_norm", False) for b in blocks),
        resblock_updown=any(getattr(b, "updown", False) for b in blocks),
        use_new_attention_order=any(
            type(a).__name__ == "QKVAttention" and hasattr(a, "n_heads") for a in attentions
        ),
    )


class AcceleratedUNetModel(Accelerated):
    """Called as a UNetModel, answering as one."""

    def forward(self, x: Tensor, timesteps: Tensor | float, y: Tensor | None = None) -> Any:
        """The output [B, C', H, W] for x [B, C, H, W], timesteps [B] and class labels y [B]."""
        return super().forward(x, timesteps, y)
