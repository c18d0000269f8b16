"""Training as on a GPU: the fused q_sample and GroupNorm+SiLU, forward and backward, in Triton's
interpreter; gradients against float64."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from op_backends import needs_interpreter, same_bits
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from unet_networks import VARIANTS, images, network

from fastddpm import GaussianDiffusion, NoiseSchedule, UNet, ops
from fastddpm.train.loss import Batch, draw_batch, losses

pytestmark = needs_interpreter

DIFFUSION = GaussianDiffusion(NoiseSchedule.linear(1000))


class Calls(TorchDispatchMode):
    """Counts the registered ops that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.namespace == "fastddpm":
            self.counted[func._opname] += 1
        return func(*args, **(kwargs or {}))


def batch_of(unet: UNet, backend: str) -> Batch:
    x_0 = images(unet, batch=3).clamp(-1, 1)
    return draw_batch(7, 100, x_0, None, DIFFUSION, backend)


def gradients(unet: UNet, batch: Batch) -> dict[str, Tensor]:
    unet.zero_grad()
    losses(lambda x, t, _: unet(x, t), DIFFUSION, batch, "simple").sum().backward()
    return {name: p.grad.double() for name, p in unet.named_parameters() if p.grad is not None}


def worst(found: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    """The largest error of any parameter's gradient, relative to the largest gradient of all."""
    scale = max(float(g.abs().max()) for g in exact.values())
    return max(float((found[name] - g).abs().max()) for name, g in exact.items()) / scale


@pytest.mark.parametrize("name", ["small", "ho", "openai", "scale_shift"])
def test_gradients_of_a_training_step_are_those_of_float64(name: str) -> None:
    unet = network(**VARIANTS[name] | {"out_channels": 3})
    plain = batch_of(unet, "reference")
    double = Batch(plain.x_0.double(), plain.t, plain.noise.double(), None)
    exact = gradients(copy.deepcopy(unet).double(), double)
    own = gradients(unet, plain)

    fast = copy.deepcopy(unet).to(memory_format=torch.channels_last)
    with ops.using("triton"), Calls() as calls:
        batch = batch_of(fast, "triton")
        found = gradients(fast, batch)
    assert found.keys() == exact.keys()
    # torch sums in other orders than the kernels do: both stay within a few roundings.
    assert worst(found, exact) <= max(2 * worst(own, exact), 2e-6)
    assert calls.counted["q_sample"] == 1
    norms = sum(isinstance(m, torch.nn.GroupNorm) for m in fast.modules())
    assert calls.counted["group_norm_silu"] == norms
    assert calls.counted["group_norm_silu_backward"] == norms


def test_the_batch_is_the_reference_batch_bit_for_bit() -> None:
    unet = network()
    a, b = batch_of(unet, "reference"), batch_of(unet, "triton")
    assert torch.equal(a.t, b.t) and same_bits(a.noise, b.noise)
    assert a.x_t is not None and b.x_t is not None and same_bits(a.x_t, b.x_t)
