"""Whether a state dict fits a network: every disagreement in one message, and the switch behind.

A network that loads with keys left over, or with a shape bent to fit, draws wrong images and says
nothing. So a state dict is taken whole, or refused with what is missing, what is unexpected, what
has another shape, and which settings of the configuration decide over those keys.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from fastddpm.checkpoint.limits import check_blocks
from fastddpm.unet import UNet, UNetConfig

LISTED = 20

# (pattern of a key, settings that decide whether it exists and how large it is); first match wins.
Switches = tuple[tuple[str, str], ...]
DIFFUSERS_SWITCHES: Switches = (
    (r"conv_in\.", "in_channels, block_out_channels, dims"),
    (r"conv_out\.", "out_channels (twice in_channels where the variance is learned)"),
    (r"time_proj\.", "time_embedding_type, num_train_timesteps"),
    (r"time_embedding\.", "block_out_channels, time_embedding_dim, time_proj_dim"),
    (r"class_embedding\.", "class_embed_type, num_class_embeds"),
    (r"mid_block\.attentions\..*group_norm", "attn_norm_num_groups, resnet_time_scale_shift"),
    (r"mid_block\.attentions\.", "add_attention, mid_block_type, attention_head_dim"),
    (r"mid_block\.", "mid_block_type, block_out_channels"),
    (r"\.attentions\.", "down_block_types, up_block_types (Attn...), attention_head_dim"),
    (r"\.time_emb_proj\.", "resnet_time_scale_shift, time_embedding_dim, block_out_channels"),
    (r"down_blocks\..*\.downsamplers\.", "downsample_type, down_block_types, block_out_channels"),
    (r"up_blocks\..*\.upsamplers\.", "upsample_type, up_block_types, block_out_channels"),
    (r"(down|up)_blocks\.", "block_out_channels, layers_per_block, dims"),
)
OPENAI_SWITCHES: Switches = (
    (r"input_blocks\.0\.0\.", "in_channels, model_channels (num_channels), dims"),
    (r"out\.", "out_channels (learn_sigma doubles it), model_channels (num_channels)"),
    (r"time_embed\.", "model_channels (num_channels)"),
    (r"label_emb\.", "num_classes (class_cond)"),
    (r"\.(qkv|proj_out|norm)\.", "attention_resolutions, channel_mult, num_res_blocks"),
    (r"\.emb_layers\.", "use_scale_shift_norm, resblock_updown, channel_mult, num_res_blocks"),
    (r"\.(op|conv)\.", "conv_resample, resblock_updown, channel_mult, num_res_blocks"),
    (
        r"(input|middle|output)_blocks?\.",
        "channel_mult, num_res_blocks, attention_resolutions, resblock_updown, dims",
    ),
)


def skeleton(config: UNetConfig, source: str = "the configuration") -> UNet:
    """The network on "meta", for `fill`: names and shapes, with nothing allocated or drawn.

    Raises ValueError for a network that no machine could hold; `source` is what described it.
    """
    check_blocks(config, source)
    try:
        with torch.device("meta"):
            return UNet(config)
    # A size beyond int64.
    except (RuntimeError, TypeError, OverflowError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"{source} describes an impossible network: {reason}") from error


def fill(unet: UNet, state: Mapping[str, Tensor], *, copy: bool = True) -> UNet:
    """A skeleton in evaluation mode with `state`, which must fit, as contiguous float32 tensors.

    copy: also of tensors that are so already. What lies in a file's mapping would change, or end
    the process with SIGBUS, when a program (cp) writes into the file or cuts it off; and q, k, v
    that were one tensor would share a buffer.
    """
    own = {
        key: value.to(torch.float32, copy=copy, memory_format=torch.contiguous_format)
        for key, value in state.items()
    }
    unet.load_state_dict(own, assign=True)
    return unet.eval()


def shapes(config: UNetConfig) -> dict[str, Tensor]:
    """The state dict that `config` expects, as meta tensors. Raises as `skeleton`."""
    return skeleton(config).state_dict()


def check_fit(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str, switches: Switches
) -> None:
    """Raise one ValueError that lists all that disagrees between `state` and `expected`.

    Args:
        source: what `state` was read from, for the message.
        switches: which settings decide over which keys.
    """
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    both = [key for key in expected if key in state]
    reshaped = [key for key in both if state[key].shape != expected[key].shape]
    retyped = [key for key in both if not state[key].is_floating_point()]
    if not (missing or unexpected or reshaped or retyped):
        return
    shape = {
        key: f"{key}: expected {_list(expected, key)}, found {_list(state, key)}"
        for key in reshaped
    }
    parts = [
        f"{source} does not fit the configuration",
        *_section("missing keys", missing),
        *_section("unexpected keys", unexpected),
        *_section("shapes that disagree", shape.values()),
        *_section("not floating point", (f"{key}: {state[key].dtype}" for key in retyped)),
        *_section("settings to check", _suspects([*missing, *unexpected, *reshaped], switches)),
    ]
    raise ValueError("\n".join(parts))


def _list(tensors: Mapping[str, Tensor], key: str) -> list[int]:
    return list(tensors[key].shape)


def _section(title: str, lines: Iterable[str]) -> list[str]:
    lines = list(lines)
    if not lines:
        return []
    more = [f"... and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
    # A name may be as long as its file.
    return [f"  {title} ({len(lines)}):", *(f"    {line[:200]}" for line in lines[:LISTED] + more)]


def _suspects(keys: Iterable[str], switches: Switches) -> list[str]:
    found: dict[str, None] = {}
    for key in keys:
        for pattern, settings in switches:
            if re.search(pattern, key):
                found[settings] = None
                break
    return list(found)
