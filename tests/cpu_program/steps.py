"""Steps whose programs the tests look at: one call of a network, and what it should give."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from unet_networks import VARIANTS, images

from fastddpm import GaussianDiffusion, NoiseSchedule, Sampler
from fastddpm.engine import Plan
from fastddpm.engine.cpu.lowering import Lowered, lower
from fastddpm.engine.cpu.options import CpuOptions
from fastddpm.engine.cpu.packed import PackedWeights
from fastddpm.engine.cpu.recording import record
from fastddpm.ops.library import cpu_library
from fastddpm.sampler.call import PlainCallStep
from fastddpm.sampler.unet_network import PlainNetwork
from fastddpm.unet import UNet

CPU = torch.device("cpu")
NO_TIMES = torch.empty(0, dtype=torch.int64)

# What these change in unet_networks.SMALL, besides its own variants.
MORE: dict[str, dict[str, Any]] = {
    "groups_straddle_the_join": {"block_out_channels": (24, 40), "norm_num_groups": 8},
    "a_joined_map_is_the_shortcut": {"block_out_channels": (16, 8)},
    "three_levels": {
        "block_out_channels": (16, 16, 32),
        "down_block_types": ("AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D"),
        "layers_per_block": 2,
        "attention_head_dim": None,
    },
    "wide_input": {"in_channels": 17, "out_channels": 5},
    "one_head_narrower_than_the_map": {"attention_head_dim": 13},
    "all_scaled": {"mid_block_scale_factor": 0.5, "resnet_time_scale_shift": "scale_shift"},
}
# What has no instructions.
REFUSED = ("mish", "1d", "3d")
NETWORKS = {name: v for name, v in VARIANTS.items() if name not in REFUSED} | MORE

LIBRARY = cpu_library()
needs_library = pytest.mark.skipif(LIBRARY.handle is None, reason=LIBRARY.reason or "never")

DIFFUSION = GaussianDiffusion(NoiseSchedule.linear(6, 0.05, 0.3))


def call_step(unet: UNet, x: Tensor, t: Tensor, labels: Tensor | None) -> PlainCallStep:
    """output = unet(x, t, labels), the state x left alone."""
    with torch.no_grad():
        return PlainCallStep(PlainNetwork(unet, CPU, NO_TIMES), x, t, labels)


def plan_of(x: Tensor, num_steps: int = 1) -> Plan:
    return Plan(tuple(x.shape), num_steps, CPU)


def lowered(step: Any, state: Tensor, num_steps: int = 1) -> Lowered:
    """The step's program on this state."""
    plan, weights = plan_of(state, num_steps), PackedWeights(CpuOptions())
    return lower(record(step, plan), plan, state, weights)


@torch.no_grad()
def exactly(
    unet: UNet, x: Tensor, t: Tensor, labels: Tensor | None, embedding: Tensor | None = None
) -> Tensor:
    """unet(x, t, labels) in float64, but for what a program gets in float32: the embedding of t and
    labels, and the sum of two biases in the rows' own. embedding: this; None: the time rows are the
    network's own in float32."""
    if embedding is None:
        rows = unet.time_rows(t, labels).double()
    else:
        projection = (tensor.double() for tensor in unet.row_projection())
        rows = F.linear(unet.activation(embedding.double()), *projection)
    return copy.deepcopy(unet).double().denoise(x.double(), rows, t.double())


def error(got: Tensor, exact: Tensor) -> float:
    """Relative, in the Euclidean norm."""
    return float((got.double() - exact).norm() / exact.norm())


def sampler(unet: UNet, **options: Any) -> Sampler:
    """Of engine "cpu", over six steps."""
    return Sampler(unet, DIFFUSION, "cpu", shape=images(unet).shape[1:], **options)


def held(chain: Sampler) -> Any:
    """The runner that a sampler used last."""
    return next(reversed(chain._chain._kept._kept.values())).runner
