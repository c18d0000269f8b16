"""Bits per dimension: term by term against the formulas, on every engine, for every split."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from cli_runs import small_unet
from cpu_program.steps import needs_library
from sampler_engines import selecting
from torch import Tensor

import fastddpm
from fastddpm import GaussianDiffusion, NoiseSchedule, ops
from fastddpm.diffusion import PREDICTIONS, VARIANCES
from fastddpm.evaluation import BitsPerDim, Bound, bits_per_dim
from fastddpm.noise import Purpose

SHAPE = (2, 5, 3)
SCHEDULE = NoiseSchedule.linear(9, 1e-3, 0.3)
# A plain function computes in float32 unless it is told.
WIDE: dict[str, Any] = {"dtype": torch.float64}
SMALL = GaussianDiffusion(NoiseSchedule.linear(12, 1e-3, 0.3))


def images(count: int = 4, dtype: torch.dtype = torch.float64) -> Tensor:
    """Levels of bytes, the two open ones among them."""
    levels = torch.randint(256, (count, *SHAPE), generator=torch.Generator().manual_seed(3))
    levels[:, 0, 0] = torch.tensor([0, 255, 128])
    return (levels.double() / 127.5 - 1).to(dtype)


def network(channels: int = 2) -> Any:
    """A function of x and t of so many channels, that treats each row by itself."""

    def call(x: Tensor, t: Tensor) -> Tensor:
        at = t.reshape(-1, 1, 1, 1).to(x.dtype)
        halves = [0.7 * x + 0.1 * torch.sin(at + x), torch.cos(3 * x + at)]
        return torch.cat(halves, dim=1)[:, :channels]

    return call


def by_formula(diffusion: GaussianDiffusion, x_0: Tensor, seed: int, decoder: Any) -> BitsPerDim:
    """One timestep after another, pixel by pixel."""
    call = network(4 if diffusion.learns_variance else 2)
    indices, vb, mse = torch.arange(len(x_0)), [], []
    for t in range(diffusion.num_steps):
        step = int(diffusion.schedule.timesteps[t])
        z = ops.normal(seed, indices, step, SHAPE, Purpose.FORWARD).to(x_0.dtype)
        at = torch.full((len(x_0),), t)
        x_t = diffusion.q_sample(x_0, at, z)
        output = call(x_t, diffusion.model_timesteps(at))
        vb.append(diffusion.vb_term(output, x_0, x_t, at, decoder=decoder))
        error = diffusion.p_mean_variance(output, x_t, at).x_0 - x_0
        mse.append((error**2).flatten(1).mean(1))
    prior = diffusion.prior_bpd(x_0)
    columns = torch.stack(vb, dim=1), torch.stack(mse, dim=1)
    return BitsPerDim(prior + columns[0].sum(1), prior, *columns)


def assert_same(found: BitsPerDim, expected: BitsPerDim, **how: Any) -> None:
    for name, one, other in zip(BitsPerDim._fields, found, expected, strict=True):
        torch.testing.assert_close(one, other, msg=lambda m, n=name: f"{n}: {m}", **how)


@pytest.mark.parametrize("clip", [1.0, 1.5, None])
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_terms_are_the_formulas(prediction: str, variance: str, clip: float | None) -> None:
    d = GaussianDiffusion(SCHEDULE, prediction, variance, clip)
    x_0, call = images(), network(4 if d.learns_variance else 2)
    for decoder in ("tanh", "erf"):
        found = bits_per_dim(call, d, x_0, 5, decoder=decoder, batch_size=7, **WIDE)
        assert_same(found, by_formula(d, x_0, 5, decoder), rtol=1e-9, atol=1e-12)
        assert all(values.dtype == torch.float64 for values in found)


def test_respaced_chains_meet_the_same_noise() -> None:
    d = GaussianDiffusion(SCHEDULE, timestep_scale=2.5)
    kept = d.respace([0, 3, 4, 8])
    found = bits_per_dim(network(), kept, images(), **WIDE)
    assert_same(found, by_formula(kept, images(), 0, "tanh"), rtol=1e-9, atol=1e-12)
    # The same x_t at the timesteps of both, so the same error of the estimate.
    whole = bits_per_dim(network(), d, images(), **WIDE)
    torch.testing.assert_close(found.mse, whole.mse[:, [0, 3, 4, 8]])


def test_images_may_be_bytes_or_numbers() -> None:
    whole = images(dtype=torch.float32)
    levels = ((whole + 1) * 127.5).round().to(torch.uint8)
    expected = bits_per_dim(network(), GaussianDiffusion(SCHEDULE), whole)
    assert all(values.dtype == torch.float32 for values in expected)
    for given in (levels, levels.numpy(), whole.numpy()):
        found = bits_per_dim(network(), GaussianDiffusion(SCHEDULE), given)
        assert_same(found, expected, rtol=1e-5, atol=1e-7)
    exact = bits_per_dim(network(), GaussianDiffusion(SCHEDULE), images())
    assert_same(BitsPerDim(*(v.double() for v in expected)), exact, rtol=1e-5, atol=1e-5)


# ---- one figure whatever the batch


@needs_library
@pytest.mark.parametrize("batch_size", [1, 3, 50, 1000])
def test_batches_do_not_show(batch_size: int) -> None:
    """Bit for bit on engine "cpu"."""
    unet, x_0 = small_unet(), torch.rand(5, 1, 8, 8) * 2 - 1
    expected = bits_per_dim(unet, SMALL, x_0, 1, engine="cpu", batch_size=64)
    found = bits_per_dim(unet, SMALL, x_0, 1, engine="cpu", batch_size=batch_size, threads=1)
    assert_same(found, expected, rtol=0, atol=0)


@needs_library
@pytest.mark.parametrize("timesteps", [None, 4])
def test_an_image_has_its_figure_alone(timesteps: int | None) -> None:
    """In another order, in parts of other sizes, from index to index; bit for bit."""
    bound = Bound(small_unet(), SMALL, "cpu")
    x_0 = torch.rand(7, 1, 8, 8) * 2 - 1
    expected = bound(x_0, 9, timesteps=timesteps)
    for part in ([6, 0, 3], [2], [1, 4, 5]):
        found = bound(x_0[part], 9, indices=part, timesteps=timesteps)
        of_part = BitsPerDim(*(values[part] for values in expected))
        assert_same(found, of_part, rtol=0, atol=0, equal_nan=True)
    other = bound(x_0[:1], 9, indices=[1], timesteps=timesteps)
    assert not torch.equal(other.total, expected.total[:1])


@needs_library
def test_engines_agree() -> None:
    unet, x_0 = small_unet(), torch.rand(3, 1, 8, 8) * 2 - 1
    found, expected = (bits_per_dim(unet, SMALL, x_0, engine=e) for e in ("reference", "cpu"))
    assert_same(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("engine", ["compile", "cuda_graph"])
def test_what_is_captured_runs_every_batch(engine: str) -> None:
    """The last one has fewer rows than the others. "cuda_graph" under the emulator."""
    sizes = set()

    def watched(x: Tensor, t: Tensor) -> Tensor:
        sizes.add(len(x))
        return network()(x, t)

    d, x_0 = GaussianDiffusion(SCHEDULE), images()
    with selecting(engine):
        found = bits_per_dim(watched, d, x_0, engine=engine, batch_size=25)
    assert sizes == {25}
    assert_same(found, bits_per_dim(network(), d, x_0), rtol=1e-5, atol=1e-7)


def test_columns_in_openais_order() -> None:
    found = bits_per_dim(network(), GaussianDiffusion(SCHEDULE), images())
    theirs = found.openai_order()
    assert torch.equal(theirs.vb[:, 0], found.vb[:, 8])
    assert torch.equal(theirs.mse[:, 8], found.mse[:, 0])
    assert torch.equal(theirs.total, found.total)


def test_labels_go_with_their_images() -> None:
    def conditional(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return network()(x, t) + 0.1 * labels.reshape(-1, 1, 1, 1)

    d, x_0 = GaussianDiffusion(SCHEDULE), images()
    found = bits_per_dim(conditional, d, x_0, labels=[0, 1, 2, 1], batch_size=5)
    for i, label in enumerate([0, 1, 2, 1]):
        alone = bits_per_dim(conditional, d, x_0[i : i + 1], labels=label, indices=[i])
        assert_same(alone, BitsPerDim(*(v[i : i + 1] for v in found)))


def test_a_callers_noise() -> None:
    """Drawn once a step, from the last down to 0, and in x_t."""
    d, x_0 = GaussianDiffusion(SCHEDULE), images()
    asked: list[tuple[int, tuple[int, ...]]] = []

    def noise(t: int, shape: tuple[int, ...]) -> Tensor:
        asked.append((t, shape))
        return ops.normal(5, torch.arange(4), t, SHAPE, Purpose.FORWARD)

    found = bits_per_dim(network(), d, x_0, noise=noise, batch_size=6)
    assert asked == [(t, (4, *SHAPE)) for t in range(8, -1, -1)]
    assert_same(found, bits_per_dim(network(), d, x_0, 5))


def test_progress_counts_terms() -> None:
    seen: list[tuple[int, int]] = []
    d = GaussianDiffusion(SCHEDULE)
    bits_per_dim(network(), d, images(), batch_size=10, progress=lambda *done: seen.append(done))
    assert seen == [(10, 36), (20, 36), (30, 36), (36, 36)]


def test_no_image_has_no_terms() -> None:
    found = bits_per_dim(network(), GaussianDiffusion(SCHEDULE), images()[:0])
    assert [list(values.shape) for values in found] == [[0], [0], [0, 9], [0, 9]]


# ---- a subset of the timesteps


def test_all_timesteps_drawn_are_the_bound() -> None:
    d = GaussianDiffusion(SCHEDULE)
    found = bits_per_dim(network(), d, images(), timesteps=8)
    assert_same(found, bits_per_dim(network(), d, images()), rtol=1e-12, atol=0)


def test_estimates_are_unbiased() -> None:
    """The mean over many images of one content, whose noise does not vary."""
    d, count, drawn = GaussianDiffusion(SCHEDULE), 4000, 3
    x_0 = images(1)
    z = ops.normal(0, torch.zeros(1, dtype=torch.int64), 0, SHAPE, Purpose.FORWARD).double()
    levels = d.schedule.alphas_cumprod

    def fixed(x: Tensor, t: Tensor) -> Tensor:
        """ε̂ that leaves an error of t alone, whatever the noise in x."""
        a = levels[t].reshape(-1, 1, 1, 1)
        estimate = x_0 + 0.05 * torch.sin(2.0 * t.double()).reshape(-1, 1, 1, 1) * z
        return (x - a.sqrt() * estimate) / (1 - a).sqrt()

    exact = bits_per_dim(fixed, d, x_0).total
    found = bits_per_dim(fixed, d, x_0.expand(count, *SHAPE), timesteps=drawn)
    assert (~found.vb.isnan()).sum(1).unique().tolist() == [drawn + 1]
    deviation = found.total.std() / math.sqrt(count)
    assert deviation > 0
    assert abs(float(found.total.mean() - exact)) < 4 * float(deviation)


# ---- mistakes


class Broken:
    """A network that fails at one timestep."""

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.where((t == 40).reshape(-1, 1, 1, 1), torch.nan, x)


def test_what_is_not_finite_is_an_error_with_its_timestep() -> None:
    d = GaussianDiffusion(NoiseSchedule.linear(100)).respace([0, 40, 99])
    with pytest.raises(FloatingPointError, match=r"timestep 40 \(step index 1\)"):
        bits_per_dim(Broken(), d, images())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": 3 * images()}, "must lie in"),
        ({"images": images().long()}, "floating-point"),
        ({"images": images()[0, 0]}, "B, C, H, W"),
        ({"indices": [0, 1]}, "an index for each of 4"),
        ({"timesteps": 0}, "at least 1"),
        ({"timesteps": 9}, "1 to 8"),
        ({"decoder": "logistic"}, "tanh, erf"),
        ({"batch_size": 0}, "batch_size"),
        ({"engine": "fast"}, "engine is one of"),
        ({"engine": "cpu"}, "cannot run"),
        ({"seed": 0.5}, "seed"),
        ({"labels": [0, 1]}, "labels"),
        ({"noise": lambda t, shape: torch.zeros(1)}, "must return a tensor"),
        ({"noise": lambda t, shape: torch.zeros(shape), "timesteps": 2}, "replaces the counter"),
        ({"noise": lambda t, shape: torch.zeros(shape), "indices": range(4)}, "replaces"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_mistakes_say_what_was_expected(change: dict[str, Any], message: str) -> None:
    given = {"images": images(), **change}
    with pytest.raises(ValueError, match=message):
        bits_per_dim(network(), GaussianDiffusion(SCHEDULE), **given)


def test_an_image_of_another_size_than_the_models() -> None:
    with pytest.raises(ValueError, match=r"a batch of \[1, 8, 8\]"):
        bits_per_dim(small_unet(), SMALL, torch.zeros(2, 8, 8, 1))


def test_it_is_public() -> None:
    assert fastddpm.evaluation.bits_per_dim is bits_per_dim
    assert BitsPerDim._fields == ("total", "prior", "vb", "mse")
