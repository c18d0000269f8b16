"""A function of x_0 inside the step, and dynamic thresholding, which is one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from op_backends import needs_library
from sampler_engines import running
from torch import Tensor
from unet_networks import network

from fastddpm import GaussianDiffusion, NoiseSchedule, Sampler
from fastddpm.engine.cpu_program import CpuPrograms
from fastddpm.sampler import Threshold

SHAPE = (2, 6, 6)
SCHEDULE = NoiseSchedule.linear(10, 0.02, 0.4)
PREDICTIONS = ("epsilon", "sample", "v_prediction", "previous_sample")


def model(x: Tensor, t: Tensor) -> Tensor:
    return 0.5 * torch.tanh(x) - 0.02 * t.reshape(-1, 1, 1, 1)


def learned(x: Tensor, t: Tensor) -> Tensor:
    return torch.cat([model(x, t), x.clamp(-1, 1)], dim=1)


def noise(step: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(step))


def loop(d: GaussianDiffusion, network: Any, edit: Any) -> Tensor:
    """Algorithm 2 with edit(x̂_0) in the mean, in plain torch."""
    x = noise(d.num_steps, (3, *SHAPE))
    for i in range(d.num_steps - 1, -1, -1):
        t = torch.full((3,), i)
        p = d.p_mean_variance(network(x, d.model_timesteps(t)), x, t)
        mean = d.q_posterior(edit(p.x_0), x, t)[0]
        spread = (0.5 * p.log_variance).exp() if i > 0 else 0.0
        x = mean + spread * noise(i, x.shape)
    return x


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned", "learned_range"])
def test_the_step_goes_on_from_what_the_function_returns(prediction: str, variance: str) -> None:
    d = GaussianDiffusion(SCHEDULE, prediction, variance, clip=1.2)
    network = learned if d.learns_variance else model

    def edit(x_0: Tensor) -> Tensor:
        return 0.5 * x_0.flip(-1) + 0.1

    chain = Sampler(network, d, "reference", shape=SHAPE)
    expected = loop(d, network, edit)
    found = chain.sample(3, noise=noise, on_x_0=edit)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    in_place = chain.sample(3, noise=noise, on_x_0=lambda x_0: x_0.copy_(edit(x_0)))
    assert torch.equal(in_place, found)
    assert not torch.allclose(chain.sample(3, noise=noise), found, atol=0.05)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_a_function_that_changes_nothing(prediction: str) -> None:
    chain = Sampler(model, GaussianDiffusion(SCHEDULE, prediction), "reference", shape=SHAPE)
    for options in ({}, {"method": "ddim"}, {"method": "dpm-solver++"}):
        torch.testing.assert_close(
            chain.sample(2, on_x_0=lambda x_0: x_0, **options),
            chain.sample(2, **options),
            rtol=1e-5,
            atol=1e-5,
        )


def test_the_function_sees_the_estimate_that_is_streamed_after_it() -> None:
    seen: list[Tensor] = []

    def edit(x_0: Tensor) -> Tensor:
        seen.append(x_0.clone())
        return x_0 / 2

    chain = Sampler(model, GaussianDiffusion(SCHEDULE), "reference", shape=SHAPE)
    for options in ({}, {"method": "dpm-solver++"}):
        seen.clear()
        shown = [step.x_0 for step in chain.stream(2, every=1, on_x_0=edit, **options)]
        assert len(seen) == len(shown) == 10
        assert all(torch.equal(a / 2, b) for a, b in zip(seen, shown, strict=True))
        assert max(float(a.abs().max()) for a in seen) <= 1  # Bounded before.


def test_thresholding_is_imagens() -> None:
    """Against torch.quantile; the diffusion's own bound is not applied."""
    d = GaussianDiffusion(SCHEDULE, clip=None)

    def threshold(x_0: Tensor) -> Tensor:
        s = torch.quantile(x_0.flatten(1).abs(), 0.995, dim=1).clamp(min=1).reshape(-1, 1, 1, 1)
        return x_0.clamp(-s, s) / s

    expected = loop(d, model, threshold)
    for clip in (1.0, 0.3):
        chain = Sampler(model, GaussianDiffusion(SCHEDULE, clip=clip), "reference", shape=SHAPE)
        found = chain.sample(3, noise=noise, clip="dynamic")
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(found, chain.sample(3, noise=noise, clip=Threshold(0.995, math.inf)))
    capped = chain.sample(3, noise=noise, clip=Threshold(0.6, 1.1))
    assert not torch.allclose(capped, found, atol=0.01)


@pytest.mark.parametrize(("engine", "last"), [("reference", 1), ("cuda_graph", 2)])
def test_the_function_gets_the_rows_of_a_batch(engine: str, last: int) -> None:
    """Twice with guidance, and as many for the last batch where the step is captured."""
    sizes: set[int] = set()

    def edit(x_0: Tensor) -> Tensor:
        sizes.add(len(x_0))
        return 0.8 * x_0

    unet, d = network(num_class_embeds=10), GaussianDiffusion(SCHEDULE)
    how: dict[str, Any] = {"labels": [1, 2, 3, 4, 5], "steps": 3, "on_x_0": edit}
    for guided in ({}, {"guidance": 3.0}):
        whole = Sampler(unet, d, "reference").sample(5, **how, **guided)
        copies = 1 + len(guided)
        assert sizes == {5 * copies}
        sizes.clear()
        with running(engine, unet, d) as sampler:
            found = sampler.sample(5, batch_size=2, **how, **guided)
        assert sizes == {2 * copies, last * copies}
        sizes.clear()
        torch.testing.assert_close(found, whole, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("method", ["ancestral", "ddim", "dpm-solver++", "langevin"])
def test_a_function_that_changes_nothing_changes_nothing(prediction: str, method: str) -> None:
    """Whichever method's mean the network's output is made to."""
    sampler = Sampler(model, GaussianDiffusion(SCHEDULE, prediction, clip=None), shape=SHAPE)
    plain = sampler.sample(2, method=method)
    edited = sampler.sample(2, method=method, on_x_0=lambda x_0: x_0)
    torch.testing.assert_close(edited, plain, rtol=1e-4, atol=1e-4)


def test_the_function_gets_each_guided_image_twice() -> None:
    """All rows, and the same again: what treats them alike keeps them the same."""
    seen: list[Tensor] = []

    def edit(x_0: Tensor) -> Tensor:
        seen.append(x_0.clone())
        return 0.8 * x_0

    unet = network(num_class_embeds=10)
    sampler = Sampler(unet, GaussianDiffusion(SCHEDULE), "reference")
    sampler.sample(3, on_x_0=edit, labels=[1, 2, 3], guidance=3.0)
    assert [len(x_0) for x_0 in seen] == 10 * [6]
    for x_0 in seen:
        of_class, of_null = x_0.chunk(2)
        assert torch.equal(of_class, of_null) and not torch.equal(of_class[0], of_class[1])


@needs_library
def test_native_programs_run_equal_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 8 images at once: 10 are two times 5, and with guidance 20 rows are three parts of at
    most 7, so of 3 images."""
    monkeypatch.setattr(CpuPrograms, "pixels", 8 * 32 * 32)
    sizes: list[int] = []

    def edit(x_0: Tensor) -> Tensor:
        sizes.append(len(x_0))
        return x_0

    unet = network(num_class_embeds=10, sample_size=32)
    sampler = Sampler(unet, GaussianDiffusion(SCHEDULE), "cpu")
    for options, expected in (({}, [5, 5]), ({"guidance": 2.0}, [6, 6, 6, 2])):
        sizes.clear()
        sampler.sample(10, on_x_0=edit, labels=1, steps=1, **options)
        assert sizes[-len(expected) :] == expected
