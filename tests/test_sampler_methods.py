"""Every way down the chain on every engine: the reference's images, whatever the batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from op_backends import needs_library
from sampler_engines import FAST, running
from torch import Tensor
from unet_networks import VARIANTS, network

from fastddpm import GaussianDiffusion, NoiseSchedule, Sampler
from fastddpm.sampler import Measured
from fastddpm.unet import UNet

SHAPE = (3, 8, 8)
SCHEDULE = NoiseSchedule.linear(8, 0.02, 0.4)
DIFFUSION = GaussianDiffusion(SCHEDULE)
MEASURED = Measured(
    SCHEDULE.timesteps, torch.linspace(0.5, 0.95, 8).double(), torch.full((8,), 0.01).double(), 1
)


def darker(x_0: Tensor) -> Tensor:
    return 0.8 * x_0 - 0.1


RECIPES: dict[str, dict[str, Any]] = {
    "respaced": {"steps": 5, "spacing": "trailing"},
    "sections": {"steps": "1,2"},
    "listed": {"steps": [7, 0, 3]},
    "ddim": {"method": "ddim"},
    "ddim with noise": {"method": "ddim", "eta": 0.7, "steps": 6},
    "dpm-solver++": {"method": "dpm-solver++"},
    "inverse": {"method": "ddim-inverse"},
    "inverse at the current timestep": {"method": "ddim-inverse", "network_at": "current"},
    "analytic": {"variance": MEASURED},
    "analytic ddim": {"variance": MEASURED, "method": "ddim", "steps": 4},
    "langevin": {"method": "langevin"},
    "langevin, corrected twice": {"method": "langevin", "corrections": 2, "steps": 4},
    "threshold": {"clip": "dynamic"},
    "no bound": {"clip": None, "method": "ddim"},
    "hook": {"on_x_0": darker},
    "hook of a multistep solver": {"on_x_0": darker, "method": "dpm-solver++", "clip": "dynamic"},
    "hook of langevin": {"on_x_0": darker, "method": "langevin", "step_size": 1.0},
    "guided": {"labels": [3, 9, 1], "guidance": 2.5},
    "guided hook": {"labels": 2, "guidance": 0.5, "on_x_0": darker, "method": "ddim"},
}


# Compiling takes seconds: these stand for the others.
COMPILED = ("hook of a multistep solver", "guided hook")
CASES = [
    (engine, name, learned)
    for engine in FAST
    for name in RECIPES
    for learned in (False, True)
    if engine != "compile" or (name in COMPILED and not learned)
]


def conditional(learned: bool) -> tuple[UNet, GaussianDiffusion]:
    variance = "learned_range" if learned else "fixed_small"
    changed = VARIANTS["openai"] if learned else {}
    return network(**changed, num_class_embeds=10), replace(DIFFUSION, variance=variance)


@pytest.mark.parametrize(("engine", "name", "learned"), CASES)
def test_engines_agree(engine: str, name: str, learned: bool) -> None:
    unet, diffusion = conditional(learned)
    options = {"labels": [4, 0, 4]} | RECIPES[name]
    expected = Sampler(unet, diffusion, "reference").sample(3, seed=5, **options)
    with running(engine, unet, diffusion) as sampler:
        for _ in range(2):
            found = sampler.sample(3, seed=5, **options)
            torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)
    assert expected.std() > 0.05


@pytest.mark.parametrize("engine", [engine for engine in FAST if engine != "compile"])
@pytest.mark.parametrize("learned", [False, True], ids=["fixed", "learned"])
def test_engines_edit_alike(engine: str, learned: bool) -> None:
    unet, diffusion = conditional(learned)
    images, known = torch.rand(3, *SHAPE) - 0.5, torch.rand(1, 8, 8) < 0.5
    options: dict[str, Any] = {"seed": 3, "labels": 2, "steps": 6}
    jumps = {"jump_length": 2, "resamplings": 3, "guidance": 1.5}

    def runs(sampler: Sampler) -> list[Tensor]:
        return [
            sampler.img2img(images, 5, **options),
            sampler.img2img(images, 5, **options, method="dpm-solver++"),
            sampler.inpaint(images, known, **options, **jumps),
            sampler.inpaint(images, known, **options, on_x_0=darker),
            sampler.invert(images, labels=2, steps=6),
        ]

    expected = runs(Sampler(unet, diffusion, "reference"))
    with running(engine, unet, diffusion) as sampler:
        for found, wanted in zip(runs(sampler), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=2e-3, atol=2e-3)


def rowwise(x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
    """A model whose rows do not meet: every split gives the same bits."""
    shift = 0.0 if labels is None else 0.1 * labels.reshape(-1, 1, 1, 1)
    return 0.3 * x + t.reshape(-1, 1, 1, 1) * 1e-2 + shift


@pytest.mark.parametrize("name", RECIPES)
def test_an_image_does_not_depend_on_its_batch(name: str) -> None:
    options: dict[str, Any] = dict(RECIPES[name])
    labels = options.pop("labels", None)
    options |= {} if "guidance" not in options else {"null_label": 7}
    sampler = Sampler(rowwise, DIFFUSION, "reference", shape=SHAPE)
    whole = sampler.sample(5, seed=2, labels=labels and [3, 9, 1, 1, 0], **options)
    split = sampler.sample(5, 2, labels=labels and [3, 9, 1, 1, 0], batch_size=2, **options)
    assert torch.equal(whole, split)
    some = sampler.sample(indices=[4, 1], seed=2, labels=labels and [0, 9], **options)
    assert torch.equal(whole[[4, 1]], some)


def test_edits_do_not_depend_on_the_batch() -> None:
    sampler = Sampler(rowwise, DIFFUSION, "reference", shape=SHAPE)
    images, known = torch.rand(5, *SHAPE) - 0.5, torch.rand(5, 3, 8, 8) < 0.5
    for edit in (
        lambda rows, **how: sampler.img2img(images[rows], 4, 3, indices=rows, **how),
        lambda rows, **how: sampler.inpaint(
            images[rows], known[rows], 3, jump_length=2, indices=rows, **how
        ),
    ):
        whole = edit([0, 1, 2, 3, 4])
        assert torch.equal(edit([0, 1, 2, 3, 4], batch_size=2), whole)
        assert torch.equal(edit([3, 1]), whole[[3, 1]])


@pytest.mark.parametrize("name", ["ddim", "dpm-solver++", "hook of a multistep solver"])
def test_a_chain_without_noise_asks_for_x_T_alone(name: str) -> None:
    asked: list[int] = []
    x_T = torch.randn(2, *SHAPE)

    def noise(step: int, shape: tuple[int, ...]) -> Tensor:
        asked.append(step)
        return x_T

    sampler = Sampler(rowwise, DIFFUSION, "reference", shape=SHAPE)
    found = sampler.sample(2, noise=noise, **RECIPES[name])
    assert asked == [8]
    assert torch.equal(sampler.sample(x_T=x_T, **RECIPES[name]), found)


def test_a_caller_draws_for_the_rows_of_guidance_once() -> None:
    def noise(step: int, shape: tuple[int, ...]) -> Tensor:
        assert shape == (2, *SHAPE)
        return torch.randn(shape, generator=torch.Generator().manual_seed(step))

    sampler = Sampler(rowwise, DIFFUSION, "reference", shape=SHAPE)
    plain = sampler.sample(2, noise=noise, labels=3)
    guided = sampler.sample(2, noise=noise, labels=3, guidance=1.0, null_label=5)
    assert torch.equal(plain, guided)


def test_the_chains_estimates_are_streamed() -> None:
    """The last one of a deterministic chain is the image."""
    sampler = Sampler(rowwise, DIFFUSION, "reference", shape=SHAPE)
    for name in ("ddim", "dpm-solver++", "hook of a multistep solver"):
        steps = list(sampler.stream(2, every=1, **RECIPES[name]))
        assert [step.t for step in steps] == list(range(7, -1, -1))
        torch.testing.assert_close(steps[-1].x_0, steps[-1].x_t)
        assert torch.equal(steps[-1].x_t, sampler.sample(2, **RECIPES[name]))


def test_one_prepared_step_serves_every_scale_and_start() -> None:
    """They are read from the device: a sampler that has run others gives what a fresh one does."""
    images = torch.rand(2, *SHAPE) - 0.5

    def run(sampler: Sampler, w: float, t: int) -> Tensor:
        how: dict[str, Any] = {"labels": 3, "null_label": 0, "method": "dpm-solver++"}
        return sampler.img2img(images, t, guidance=w, **how)

    used = Sampler(rowwise, DIFFUSION, "reference", shape=SHAPE)
    found = [run(used, w, t) for w, t in ((2.0, 7), (-1.0, 4), (2.0, 4))]
    for image, (w, t) in zip(found, ((2.0, 7), (-1.0, 4), (2.0, 4)), strict=True):
        fresh = Sampler(rowwise, DIFFUSION, "reference", shape=SHAPE)
        assert torch.equal(run(fresh, w, t), image)
    assert not torch.equal(found[0], found[2]) and not torch.equal(found[1], found[2])
    assert len(used._runs.chains) == 2  # Its own, and this one.


def test_weights_that_change_reach_every_chain() -> None:
    unet = network()
    for engine in ("reference", *(e for e in FAST if e in ("cpu", "cuda_graph"))):
        with running(engine, unet, DIFFUSION) as sampler:
            recipes = [{}, {"method": "ddim"}, {"steps": 3}]
            before = [sampler.sample(1, **recipe) for recipe in recipes]
            with torch.no_grad():
                unet.conv_out.bias.data += 0.5
            after = [sampler.sample(1, **recipe) for recipe in recipes]
            expected = [
                Sampler(unet, DIFFUSION, engine="reference").sample(1, **r) for r in recipes
            ]
            for old, new, wanted in zip(before, after, expected, strict=True):
                assert not torch.allclose(old, new, atol=1e-2)
                torch.testing.assert_close(new, wanted, rtol=2e-3, atol=2e-3)


def test_what_a_hook_raises_comes_out_of_every_engine() -> None:
    class Seen(Exception):
        pass

    calls = []

    def broken(x_0: Tensor) -> Tensor:
        calls.append(x_0.shape)
        if len(calls) == 3:
            raise Seen
        return x_0

    for engine in ("reference", "auto"):
        calls.clear()
        sampler = Sampler(network(), DIFFUSION, engine)
        with pytest.raises(Seen):
            sampler.sample(2, on_x_0=broken)
        assert len(calls) == 3
        # And the chain after that is whole.
        assert sampler.sample(2, on_x_0=broken).isfinite().all()


def test_img2img_is_the_chain_from_the_noised_image() -> None:
    """Of any method: a multistep solver begins there as it begins at x_T."""
    sampler = Sampler(rowwise, DIFFUSION, "reference", shape=SHAPE)
    images, z = torch.rand(2, *SHAPE) - 0.5, torch.randn(2, *SHAPE)
    x_t = DIFFUSION.q_sample(images, torch.full((2,), 5), z)
    for options in ({"method": "ddim"}, {"method": "dpm-solver++"}, {"on_x_0": darker}):
        options = {"noise": lambda step, shape: z} | options
        found = sampler.img2img(images, 5, **options)
        expected = sampler.sample(x_T=x_t, steps=range(6), **options)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    # Fewer steps: the last of them that is not beyond t.
    short = sampler.img2img(images, 5, steps=[0, 4, 7], method="ddim", noise=lambda *_: z)
    x_t = DIFFUSION.q_sample(images, torch.full((2,), 4), z)
    torch.testing.assert_close(short, sampler.sample(x_T=x_t, steps=[0, 4], method="ddim"))
    with pytest.raises(ValueError, match="visits 4 to 7; got 3"):
        sampler.img2img(images, 3, steps=[4, 7])


def test_nothing_is_drawn_of_nothing() -> None:
    sampler = Sampler(rowwise, DIFFUSION, "reference", shape=SHAPE)
    for options in RECIPES.values():
        labels = [] if "labels" in options else None
        how = {k: v for k, v in options.items() if k != "labels"}
        how |= {"null_label": 1} if "guidance" in how else {}
        assert sampler.sample(0, labels=labels, **how).shape == (0, *SHAPE)
        list(sampler.stream(0, labels=labels, **how))


@pytest.mark.parametrize("engine", ["reference", *(e for e in FAST if e != "compile")])
def test_the_callers_default_dtype_changes_nothing(engine: str) -> None:
    unet, plain = network(num_class_embeds=10), network()
    images, known = torch.rand(2, *SHAPE) - 0.5, torch.rand(8, 8) < 0.5

    def runs() -> list[Tensor]:
        with running(engine, unet, DIFFUSION) as sampler:
            names = ("guided hook", "dpm-solver++", "analytic", "threshold", "inverse")
            return [
                *(sampler.sample(2, **{"labels": 3} | RECIPES[name]) for name in names),
                sampler.inpaint(images, known, labels=3, guidance=2.0, steps=4),
                measured(),
            ]

    def measured() -> Tensor:
        with running(engine, plain, DIFFUSION) as sampler:
            return sampler.measure(images).x_0_error

    expected = runs()
    torch.set_default_dtype(torch.float64)
    try:
        found = runs()
    finally:
        torch.set_default_dtype(torch.float32)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@needs_library
def test_native_programs_give_the_same_bits_for_every_batch() -> None:
    unet = network(num_class_embeds=10)
    sampler = Sampler(unet, DIFFUSION, "cpu")
    for name in ("guided", "threshold", "hook of a multistep solver", "ddim with noise"):
        options = {"labels": 3} | RECIPES[name] | {"seed": 4}
        options["labels"] = 3
        whole = sampler.sample(4, **options)
        assert torch.equal(sampler.sample(4, batch_size=3, **options), whole)
        assert torch.equal(sampler.sample(indices=[2], **options), whole[2:3])
