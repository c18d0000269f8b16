"""The offline count of launches: what it counts in small programs is what they launch."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

# benchmarks/ is no part of the package. Appended, so that nothing installed is shadowed.
sys.path.append(str(Path(__file__).parents[1]))

from benchmarks.inductor_launches import networks, program
from benchmarks.inductor_launches.pretended_cuda import pretended_cuda
from fastddpm.unet import UNetConfig

# Inductor remembers a device's properties for the life of a process.
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="pretends a GPU, and here is one")

PROGRAM = """
from torch import empty_strided_cuda
extern_kernels.mm(outside, the, function)
def call(args):
    buf0 = extern_kernels.convolution(x, w, stride=(1, 1), bias=None)
    assert_size_stride(buf0, (1, 2), (2, 1), 'torch.ops.aten.convolution.default')
    triton_poi_fused_3.run(buf0, buf1, 128, stream=raw_stream0)
    extern_kernels.addmm(bias, a, b, alpha=1, beta=1, out=buf2)
    buf3 = torch.ops.fastddpm.group_norm_silu.default(buf0, w, b, 32)
    buf4 = buf3[0]
    triton_poi_fused_3.run(buf4, buf1, 128, stream=raw_stream0)
    return (buf4, )
"""


def test_calls_of_a_program() -> None:
    poi = "triton_poi_fused_3"
    own = "fastddpm.group_norm_silu.default"
    assert program.calls(PROGRAM) == ["convolution", poi, "addmm", own, poi]


def test_one_launch_for_a_convolution_and_its_neighbours() -> None:
    def step(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.silu(F.conv2d(x, w, b, padding=1)) * 2 + 1

    with pretended_cuda() as mode:
        with mode:
            x = torch.empty(2, 8, 6, 6, device="cuda", dtype=torch.bfloat16)
            w = torch.empty(8, 8, 3, 3, device="cuda", dtype=torch.bfloat16)
            x, w = (tensor.to(memory_format=torch.channels_last) for tensor in (x, w))
            b = torch.empty(8, device="cuda", dtype=torch.bfloat16)
        counted = program.launches(mode, step, (x, w, b))
    assert counted == {"convolution": 1, "triton": 1}


def test_products_attention_and_held_weights() -> None:
    linear = nn.Linear(16, 48, dtype=torch.bfloat16)

    def step(x: Tensor) -> Tensor:
        q, k, v = linear(x)[:, None].chunk(3, dim=-1)
        return F.scaled_dot_product_attention(q, k, v)

    kinds = []
    for flash_attention in (True, False):
        with pretended_cuda(flash_attention=flash_attention) as mode:
            with mode:
                x = torch.empty(2, 32, 16, device="cuda", dtype=torch.bfloat16)
            networks._to_fake_cuda(mode, linear, None, torch.contiguous_format)
            kinds.append(program.launches(mode, step, (x,)))
    assert kinds[0] == {"product": 1, "attention": 1}
    assert kinds[1]["product"] == 3 and "attention" not in kinds[1]


def test_nothing_stays_pretended() -> None:
    with pretended_cuda():
        assert torch.cuda.get_device_capability() == (9, 0)
    assert torch.randn(3, 2)[None, ..., 0].shape == (1, 3)
    if not torch.backends.cuda.is_built():
        assert not torch.cuda.is_available()


@pytest.mark.slow
def test_a_step_of_ours_is_its_layers() -> None:
    """Convolutions, products and normalisations are one launch each, and little comes besides."""
    config = UNetConfig.ho(
        sample_size=16, channels=32, channel_mult=(1, 2), attention_resolutions=(8,)
    )
    unet_modules = list(networks.UNet(config).modules())
    convolutions = [m for m in unet_modules if isinstance(m, nn.Conv2d)]
    spatial = [m for m in convolutions if m.kernel_size == (3, 3)]
    attentions = sum(type(m).__name__ == "Attention" for m in unet_modules)
    norms = sum(isinstance(m, nn.GroupNorm) for m in unet_modules)
    with pretended_cuda() as mode:
        counted = program.launches(mode, *networks.our_step(mode, 4, config))
    # The first, the last and that of stride 2 are cuDNN's.
    assert counted["convolution"] == 3
    # Queries, keys and values are one product; a 1×1 convolution is one, too.
    assert counted["product"] == 2 * attentions + len(convolutions) - len(spatial)
    assert counted["attention"] == attentions
    # The reverse step, the row of time rows, and the sums before the map halves and doubles.
    assert counted["fastddpm"] == norms + 2 + 2 + len(spatial) - 3
    # The last convolution's bias, and the counter.
    assert counted["triton"] == 2 and "other" not in counted
