"""Classifier-free guidance: the mixture, its limits, and what it leaves alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from unet_networks import VARIANTS, network

from fastddpm import GaussianDiffusion, NoiseSchedule, Sampler
from fastddpm.sampler.guidance import Guidance

SHAPE = (3, 8, 8)
SCHEDULE = NoiseSchedule.linear(6, 0.05, 0.4)
DIFFUSION = GaussianDiffusion(SCHEDULE)


def sampler(model: Any, diffusion: GaussianDiffusion = DIFFUSION) -> Sampler:
    return Sampler(model, diffusion, "reference", shape=SHAPE)


@pytest.mark.parametrize("w", [-0.5, 0.3, 4.0])
@pytest.mark.parametrize("learned", [False, True], ids=["fixed", "learned"])
def test_is_the_chain_of_the_mixed_network(w: float, learned: bool) -> None:
    """(1 - w) output(null) + w output(class), two calls instead of two rows."""
    changed = VARIANTS["openai"] if learned else {}
    diffusion = GaussianDiffusion(SCHEDULE, variance="learned_range" if learned else "fixed_large")
    unet = network(**changed, num_class_embeds=10)

    def mixed(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        of_class, of_null = unet(x, t, labels), unet(x, t, torch.full_like(labels, 6))
        guided = (1 - w) * of_null[:, :3] + w * of_class[:, :3]
        return torch.cat([guided, of_class[:, 3:]], dim=1)

    found = sampler(unet, diffusion).sample(3, 1, labels=[0, 5, 9], guidance=w, null_label=6)
    expected = sampler(mixed, diffusion).sample(3, 1, labels=[0, 5, 9])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(
        found, sampler(unet, diffusion).sample(3, 1, labels=[0, 5, 9]), atol=0.01
    )


def test_a_scale_of_one_is_the_class_and_of_zero_none() -> None:
    unet = network(num_class_embeds=10)
    chain = sampler(unet)
    for scale, label in ((1.0, 4), (0.0, 9)):
        found = chain.sample(2, labels=4, guidance=scale)  # The null label is the last.
        torch.testing.assert_close(found, chain.sample(2, labels=label), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_output_is_linear_in_the_scale(dtype: torch.dtype) -> None:
    output = torch.randn(6, 4, 5, 5).to(dtype)
    of_class, of_null = output.float().chunk(2)
    guidance = Guidance((6, 4, 5, 5), torch.device("cpu"), learns_variance=False)
    for w in (0.0, 1.0, 7.5):
        guidance.scale.fill_(w)
        first, second = guidance(output).chunk(2)
        assert torch.equal(first, second)
        torch.testing.assert_close(first, of_null + w * (of_class - of_null), rtol=1e-5, atol=1e-5)
        if w in (0, 1):
            assert torch.equal(first, of_class if w else of_null)
