"""OpenAI's two attentions, in plain tensors, against the network that each order's file gives."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastddpm import from_pretrained
from fastddpm.checkpoint import to_openai
from fastddpm.checkpoint.openai_kwargs import read_kwargs, unet_config
from fastddpm.unet import UNet
from fastddpm.unet.sum import Sum

HEADS = 4
KWARGS = {
    "model_channels": 32,
    "num_res_blocks": 1,
    "attention_resolutions": [],
    "channel_mult": [1],
    "num_heads": HEADS,
}


def attention(state: dict[str, Tensor], x: Tensor, new_order: bool) -> Tensor:
    """AttentionBlock: QKVAttentionLegacy, or QKVAttention under use_new_attention_order."""
    name = "middle_block.1"
    weights = {key: state[f"{name}.{key}"] for key in ("norm.weight", "norm.bias")}
    h = F.group_norm(x, 32, *weights.values(), eps=1e-5).flatten(2)
    qkv = F.conv1d(h, state[f"{name}.qkv.weight"], state[f"{name}.qkv.bias"])  # [B, 3C, N]
    B, width, N = qkv.shape
    d = width // (3 * HEADS)
    if new_order:
        q, k, v = (part.reshape(B * HEADS, d, N) for part in qkv.chunk(3, dim=1))
    else:
        q, k, v = qkv.reshape(B * HEADS, 3 * d, N).split(d, dim=1)
    weight = torch.einsum("bct,bcs->bts", q, k) / math.sqrt(d)
    mixed = torch.einsum("bts,bcs->bct", weight.softmax(dim=-1), v).reshape(B, -1, N)
    out = F.conv1d(mixed, state[f"{name}.proj_out.weight"], state[f"{name}.proj_out.bias"])
    return x + out.reshape(x.shape)


@pytest.mark.parametrize("new_order", [False, True])
def test_each_order_is_read_as_its_code_computes_it(new_order: bool, tmp_path: Path) -> None:
    config = unet_config(read_kwargs(KWARGS, "kwargs")[0])
    generator = torch.Generator().manual_seed(0)
    drawn = to_openai(UNet(config).state_dict(), config)
    state = {k: torch.randn(v.shape, generator=generator) * 0.2 for k, v in drawn.items()}
    torch.save(state, tmp_path / "ema_0.9999_500000.pt")
    x = torch.randn(2, 32, 4, 4, generator=generator)
    found = {}
    for order in (False, True):
        text = json.dumps(KWARGS | {"use_new_attention_order": order})
        (tmp_path / "kwargs.json").write_text(text)
        unet, _ = from_pretrained(tmp_path)
        with torch.inference_mode():
            found[order] = unet.mid_block.attentions[0](Sum(x)).total()
    expected = attention(state, x, new_order)
    assert (found[new_order] - expected).abs().max() < 1e-5
    # The orders have one shape, and differ by much more than rounding.
    assert (found[not new_order] - expected).abs().max() > 0.1
