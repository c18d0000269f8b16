"""The sampler against chains written out by hand, closed forms, and its own promises."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastddpm.diffusion import GaussianDiffusion
from fastddpm.noise import Purpose, normal
from fastddpm.sampler import Sampler
from fastddpm.schedule import NoiseSchedule
from fastddpm.timesteps import linspace, trailing

SHAPE = (2, 3, 5)
DATA_MEAN, DATA_STD = 0.3, 0.2


def schedule(T: int = 50) -> NoiseSchedule:
    return NoiseSchedule.linear(T, 1e-3, 0.2)


def rowwise(x: Tensor, t: Tensor) -> Tensor:
    """A network that treats each element by itself, so that batches cannot matter."""
    return (x * (1 + t.reshape(-1, 1, 1, 1).to(x.dtype) / 100)).sin()


class ConvNet(nn.Module):
    """A small network with dropout and a normalisation over the channels."""

    def __init__(self, channels: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(channels, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.dropout = nn.Dropout(0.5)
        self.out = nn.Conv2d(8, channels, 3, padding=1)
        self.seen: list[tuple[bool, torch.dtype]] = []

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.seen.append((self.training, x.dtype))
        h = self.norm(self.conv(x)) * (1 + t.reshape(-1, 1, 1, 1).to(x.dtype) / 100)
        return self.out(self.dropout(h.sigmoid()))


def chain_by_hand(
    model: Callable[[Tensor, Tensor], Tensor], s: NoiseSchedule, large: bool, indices: list[int]
) -> Tensor:
    """Algorithm 2 of Ho et al. in float64, from the betas; clipped at 1."""
    ids = torch.tensor(indices)
    abar = torch.cumprod(1 - s.betas, 0)
    x = normal(9, ids, 0, SHAPE, Purpose.INITIAL).double()
    for i in reversed(range(len(s))):
        t = s.timesteps[i].expand(len(ids))
        prev = abar[i - 1] if i else torch.tensor(1.0, dtype=torch.float64)
        eps = model(x, t)
        x_0 = ((x - (1 - abar[i]).sqrt() * eps) / abar[i].sqrt()).clamp(-1, 1)
        beta = 1 - abar[i] / prev
        mean = (prev.sqrt() * beta * x_0 + (1 - beta).sqrt() * (1 - prev) * x) / (1 - abar[i])
        variance = beta if large else (1 - prev) / (1 - abar[i]) * beta
        z = normal(9, ids, int(s.timesteps[i]), SHAPE, Purpose.REVERSE).double()
        x = mean + (variance.sqrt() * z if i else 0)
    return x


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("kept", [None, linspace(50, 7), trailing(50, 10)])
def test_the_chain_is_algorithm_2(engine: str, large: bool, kept: Tensor | None) -> None:
    s = schedule() if kept is None else schedule().respace(kept)
    d = GaussianDiffusion(s, variance="fixed_large" if large else "fixed_small")
    got = Sampler(rowwise, d, engine, shape=SHAPE).sample(indices=[4, 0, 2**40], seed=9)
    expected = chain_by_hand(rowwise, s, large, [4, 0, 2**40])
    assert got.dtype == torch.float32
    # float32 arithmetic over 50 steps of a chain that contracts towards its data.
    assert (got - expected).abs().max() < 2e-5


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction", "previous_sample"])
@pytest.mark.parametrize("variance", ["fixed_small", "learned", "learned_range"])
def test_the_chain_is_p_step_repeated(prediction: str, variance: str) -> None:
    d = GaussianDiffusion(schedule(20), prediction, variance)

    def model(x: Tensor, t: Tensor) -> Tensor:
        out = rowwise(x, t)
        # A log-variance near the truth for "learned", anything in range for "learned_range".
        values = out - 4 if variance == "learned" else out
        return torch.cat([out, values], dim=1) if d.learns_variance else out

    x = normal(0, torch.arange(3), 0, SHAPE, Purpose.INITIAL)
    for i in reversed(range(20)):
        t = torch.full((3,), i)
        z = normal(0, torch.arange(3), i, SHAPE, Purpose.REVERSE)
        x = d.p_step(model(x, t), x, t, z)
    got = Sampler(model, d, shape=SHAPE).sample(3)
    assert (got - x).abs().max() < 1e-5


def test_the_closed_form_of_gaussian_data() -> None:
    """For N(m, s²) data the optimal x_0 is affine in x_t, so each marginal of the chain is a normal
    whose moments follow from the step's coefficients; the samples must have the last ones."""
    s = schedule()
    abar = s.alphas_cumprod

    def posterior_mean(x: Tensor, t: Tensor) -> Tensor:
        a = abar[t].reshape(-1, 1, 1, 1).to(x.dtype)
        gain = a.sqrt() * DATA_STD**2 / (a * DATA_STD**2 + 1 - a)
        return DATA_MEAN + gain * (x - a.sqrt() * DATA_MEAN)

    mean, variance = 0.0, 1.0
    for i in reversed(range(len(s))):
        a = float(abar[i])
        gain = math.sqrt(a) * DATA_STD**2 / (a * DATA_STD**2 + 1 - a)
        c1, c2 = float(s.posterior_mean_coef1[i]), float(s.posterior_mean_coef2[i])
        slope = c1 * gain + c2
        mean = slope * mean + c1 * (1 - gain * math.sqrt(a)) * DATA_MEAN
        variance = slope**2 * variance + (float(s.posterior_variance[i]) if i else 0.0)
    d = GaussianDiffusion(s, "sample", clip=None)
    x = Sampler(posterior_mean, d, shape=(1, 16, 16)).sample(400, seed=3).double()
    count = x.numel()
    # Five standard errors: a false alarm once in a million seeds, and the seed is fixed.
    assert abs(float(x.mean()) - mean) < 5 * math.sqrt(variance / count)
    assert abs(float(x.var()) - variance) < 5 * variance * math.sqrt(2 / count)
    # And the chain itself is near the data; "fixed_small" loses variance in 50 coarse steps.
    assert abs(mean - DATA_MEAN) < 0.01
    assert 0.5 < variance / DATA_STD**2 < 1.0


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 100])
def test_images_do_not_depend_on_the_split(batch_size: int) -> None:
    d = GaussianDiffusion(schedule(20))
    whole = Sampler(rowwise, d, shape=SHAPE).sample(7, seed=5)
    split = Sampler(rowwise, d, shape=SHAPE, batch_size=batch_size)
    assert torch.equal(split.sample(7, seed=5), whole)
    assert torch.equal(split.sample(indices=[6, 2], seed=5), whole[[6, 2]])
    assert torch.equal(split.sample(indices=torch.tensor([1]), seed=5), whole[1:2])
    # The call's own batch size wins.
    assert torch.equal(split.sample(7, 5, batch_size=4), whole)


def test_a_convolutional_network_agrees_between_splits_up_to_rounding() -> None:
    d = GaussianDiffusion(schedule(20))
    sampler = Sampler(ConvNet(), d, shape=SHAPE)
    whole = sampler.sample(6, seed=5)
    assert (sampler.sample(6, seed=5, batch_size=4) - whole).abs().max() < 1e-5
    assert not torch.equal(sampler.sample(6, seed=6), whole)


def test_counter_noise_belongs_to_the_original_timestep() -> None:
    """A respaced chain meets, at a timestep it keeps, the noise of the full chain there."""
    s = schedule().respace([0, 10, 40])
    drawn = {}

    def model(x: Tensor, t: Tensor) -> Tensor:
        drawn[int(t[0])] = x.clone()
        return torch.zeros_like(x)

    d = GaussianDiffusion(s, "sample", clip=None)
    Sampler(model, d, shape=SHAPE).sample(2)
    ids = torch.arange(2)
    z = normal(0, ids, 40, SHAPE, Purpose.REVERSE)
    expected = s.posterior_mean_coef2[2] * drawn[40] + s.posterior_variance[2].sqrt() * z
    assert torch.equal(drawn[40], normal(0, ids, 0, SHAPE, Purpose.INITIAL))
    assert (drawn[10] - expected).abs().max() < 1e-6


def test_the_callers_noise_is_asked_for_once_a_step_from_T_to_0() -> None:
    d = GaussianDiffusion(schedule(8))
    calls = []

    def noise(step: int, shape: tuple[int, ...]) -> Tensor:
        calls.append((step, shape))
        if step == 8:
            return normal(2, torch.arange(3), 0, SHAPE, Purpose.INITIAL)
        return normal(2, torch.arange(3), step, SHAPE, Purpose.REVERSE)

    sampler = Sampler(rowwise, d, shape=SHAPE)
    got = sampler.sample(3, noise=noise)
    assert calls == [(step, (3, *SHAPE)) for step in reversed(range(9))]
    assert torch.equal(got, sampler.sample(3, seed=2))


def test_stream_passes_through_the_states_of_sample() -> None:
    d = GaussianDiffusion(schedule(20))
    sampler = Sampler(rowwise, d, shape=SHAPE)
    all_steps = list(sampler.stream(3, seed=1, every=1))
    some = list(sampler.stream(3, seed=1, every=6))
    assert [s.t for s in all_steps] == list(reversed(range(20)))
    assert [s.t for s in some] == [18, 12, 6, 0]
    for step in some:
        same = all_steps[19 - step.t]
        assert torch.equal(step.x_t, same.x_t)
        assert torch.equal(step.x_0, same.x_0)
    assert torch.equal(some[-1].x_t, sampler.sample(3, seed=1))
    # The estimate of a step is made from the state before it.
    before, after = all_steps[3], all_steps[4]
    t = torch.full((3,), after.t)
    expected = d.p_mean_variance(rowwise(before.x_t, t), before.x_t, t).x_0
    assert (after.x_0 - expected).abs().max() < 1e-6


def test_stream_can_be_left_early_and_gives_the_model_back_between_steps() -> None:
    model = ConvNet().train()
    steps = Sampler(model, GaussianDiffusion(schedule(20)), shape=SHAPE).stream(2, every=5)
    next(steps)
    assert model.training and model.dropout.training and torch.is_grad_enabled()
    steps.close()
    assert not any(training for training, _ in model.seen)


def test_modes_are_restored_and_no_gradient_is_kept() -> None:
    model = ConvNet().train()
    model.norm.eval()
    images = Sampler(model, GaussianDiffusion(schedule(5)), shape=SHAPE).sample(2)
    assert not images.requires_grad
    assert not any(training for training, _ in model.seen)
    assert model.training and model.dropout.training and not model.norm.training
    # An image may be used in a computation with gradients.
    (images * model.conv.weight.sum()).sum().backward()


def test_modes_are_restored_after_an_error() -> None:
    model = ConvNet().train()
    with torch.no_grad():
        model.out.weight.fill_(math.nan)
    with pytest.raises(FloatingPointError):
        Sampler(model, GaussianDiffusion(schedule(5)), shape=SHAPE).sample(2)
    assert model.training


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_network_runs_in_the_dtype_asked_for_and_stays_as_it_is(dtype: torch.dtype) -> None:
    model = ConvNet()
    d = GaussianDiffusion(schedule(10))
    exact = Sampler(model, d, shape=SHAPE).sample(2)
    got = Sampler(RecordingCopy(model), d, dtype=dtype, shape=SHAPE).sample(2)
    assert got.dtype == torch.float32
    assert model.conv.weight.dtype == torch.float32
    assert RecordingCopy.dtypes == {dtype}
    tolerance = 1e-5 if dtype == torch.float64 else 0.1
    assert (got - exact).abs().max() < tolerance


class RecordingCopy(nn.Module):
    """The sampler copies a model to change its dtype; the record is the class's."""

    dtypes: set[torch.dtype]

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        type(self).dtypes = set()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        type(self).dtypes.add(x.dtype)
        out: Tensor = self.inner(x, t)
        return out


def test_weights_changed_between_calls_are_seen() -> None:
    model = ConvNet()
    sampler = Sampler(model, GaussianDiffusion(schedule(5)), dtype=torch.bfloat16, shape=SHAPE)
    before = sampler.sample(1)
    with torch.no_grad():
        model.out.bias.add_(0.5)
    assert not torch.equal(sampler.sample(1), before)


def test_labels_reach_the_model_row_by_row() -> None:
    seen: list[list[int]] = []

    def model(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        seen.append(labels.tolist())
        return x * labels.reshape(-1, 1, 1, 1) / 10

    sampler = Sampler(model, GaussianDiffusion(schedule(2)), shape=SHAPE)
    images = sampler.sample(3, labels=[7, 1, 4], batch_size=2)
    assert seen == [[7, 1], [7, 1], [4], [4]]
    assert torch.equal(sampler.sample(3, labels=torch.tensor([7, 1, 4])), images)
    seen.clear()
    sampler.sample(2, labels=3)
    assert seen == [[3, 3], [3, 3]]
    with pytest.raises(ValueError, match="one class or 3"):
        sampler.sample(3, labels=[1, 2])


def test_a_model_may_return_an_object_and_tell_its_shape() -> None:
    class Diffusers(nn.Module):
        config = SimpleNamespace(in_channels=2, sample_size=(3, 5))

        def forward(self, x: Tensor, t: Tensor) -> Any:
            return SimpleNamespace(sample=rowwise(x, t))

    d = GaussianDiffusion(schedule(5))
    got = Sampler(Diffusers(), d).sample(2)
    assert torch.equal(got, Sampler(rowwise, d, shape=SHAPE).sample(2))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("clip", [1.0, None])
@pytest.mark.parametrize("bad", [417, 999, 0])
def test_nan_and_inf_name_the_timestep(value: float, clip: float | None, bad: int) -> None:
    s = NoiseSchedule.linear(1000).respace([0, 1, 200, 417, 800, 999])

    def model(x: Tensor, t: Tensor) -> Tensor:
        return torch.where((t == bad).reshape(-1, 1, 1, 1), value, 0 * x)

    sampler = Sampler(model, GaussianDiffusion(s, clip=clip), shape=SHAPE)
    with pytest.raises(FloatingPointError, match=f"at timestep {bad} "):
        sampler.sample(2)
    with pytest.raises(FloatingPointError, match=f"at timestep {bad} "):
        list(sampler.stream(2))


def test_one_bad_image_in_a_batch_is_enough() -> None:
    def model(x: Tensor, t: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        out[-1, -1, -1, -1] = math.inf
        return out

    with pytest.raises(FloatingPointError, match="at timestep 4 "):
        Sampler(model, GaussianDiffusion(schedule(5)), shape=SHAPE).sample(3)


def test_progress_counts_every_step_of_every_batch() -> None:
    counted: list[tuple[int, int]] = []
    sampler = Sampler(rowwise, GaussianDiffusion(schedule(4)), shape=SHAPE, batch_size=2)
    sampler.sample(5, progress=lambda done, total: counted.append((done, total)))
    assert counted == [(k, 12) for k in range(1, 13)]


def test_no_images() -> None:
    sampler = Sampler(rowwise, GaussianDiffusion(schedule(4)), shape=SHAPE)
    assert sampler.sample(0).shape == (0, *SHAPE)
    assert sampler.sample(indices=[]).shape == (0, *SHAPE)


def test_a_clipped_chain_ends_in_range_without_a_clamp() -> None:
    d = GaussianDiffusion(NoiseSchedule.linear(1000))
    # An untrained network drives the estimate far beyond the bounds at once.
    images = Sampler(lambda x, t: -3 * x, d, shape=SHAPE).sample(2)
    assert images.abs().max() == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either n"),
        ({"n": 2, "indices": [1]}, "either n"),
        ({"n": -1}, "at least 0"),
        ({"indices": [0, -3]}, "-3 to 0"),
        ({"n": 2, "seed": -1}, "seed"),
        ({"n": 2, "seed": 2**64}, "seed"),
        ({"n": 2, "batch_size": 0}, "batch_size"),
        ({"indices": [1], "noise": lambda step, shape: torch.zeros(shape)}, "give n"),
        ({"n": 3, "batch_size": 2, "noise": lambda step, shape: torch.zeros(shape)}, "split"),
        ({"n": 3, "noise": lambda step, shape: torch.zeros(shape[1:])}, "noise"),
        ({"n": 3, "noise": lambda step, shape: None}, "got NoneType"),
        ({"n": 2.0}, "n must be an integer, got 2.0"),
        ({"n": True}, "n must be an integer, got True"),
        ({"n": 2, "seed": 1.5}, "seed must be an integer, got 1.5"),
        ({"n": 2, "seed": None}, "seed must be an integer, got None"),
        ({"n": 2, "batch_size": 1.5}, "batch_size must be an integer, got 1.5"),
        ({"indices": torch.tensor([1.5])}, r"indices must be .*, got torch.float32 \[1\]"),
        ({"indices": np.array([0.0, 1.0])}, r"indices must be .*, got float64 \[2\]"),
        ({"indices": torch.tensor([True, False])}, r"indices must be .*, got torch.bool \[2\]"),
        ({"indices": [0, 1.5]}, "indices must be .*, got .*1.5"),
        ({"indices": torch.tensor(3)}, r"indices must be .*, got torch.int64 \[\]"),
        ({"indices": np.zeros((2, 1), np.int32)}, r"indices must be .*, got int32 \[2, 1\]"),
        ({"indices": 7}, "indices must be .*, got 7"),
        ({"indices": "12"}, "indices must be .*, got '12'"),
        ({"indices": [0, 2**63]}, "0 to 2\\^63 - 1"),
        ({"n": 2, "labels": 1.5}, r"labels must be integers, got \[1\.5\]"),
        ({"n": 2, "labels": [0.0, 1.0]}, "labels must be integers"),
        ({"n": 2, "labels": "cat"}, "labels must be integers, got 'cat'"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    sampler = Sampler(rowwise, GaussianDiffusion(schedule(4)), shape=SHAPE)
    with pytest.raises(ValueError, match=message):
        sampler.sample(**arguments)


def test_wrong_samplers_are_refused() -> None:
    d = GaussianDiffusion(schedule(4))
    with pytest.raises(ValueError, match="callable"):
        Sampler(3, d, shape=SHAPE)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(ValueError, match="floating"):
        Sampler(rowwise, d, dtype=torch.int64, shape=SHAPE)
    with pytest.raises(ValueError, match=r"torch\.dtype, got 'bfloat16'"):
        Sampler(rowwise, d, dtype="bfloat16", shape=SHAPE)  # type: ignore[arg-type]  # wrong
    with pytest.raises(ValueError, match="a GaussianDiffusion, got None"):
        Sampler(rowwise, None, shape=SHAPE)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(ValueError, match=r"expected cpu, cuda, cuda:1, .* got 'foo'"):
        Sampler(rowwise, d, device="foo", shape=SHAPE)
    for wrong in ("3", (3, -1, 16), (3,), 5):
        with pytest.raises(ValueError, match="shape"):
            Sampler(rowwise, d, shape=wrong)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(ValueError, match="noise must be callable"):
        Sampler(rowwise, d, shape=SHAPE).sample(2, noise=torch.zeros(2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"floating tensor.*got torch\.int64"):
        Sampler(lambda x, t: x.long(), d, shape=SHAPE).sample(2)
    with pytest.raises(ValueError, match=r"it takes a fastddpm\.UNet, not rowwise"):
        Sampler(rowwise, d, "cpu", shape=SHAPE)
    with pytest.raises(ValueError, match="'cuda_graph' cannot run: it needs a CUDA device"):
        Sampler(rowwise, d, "cuda_graph", device="cpu", shape=SHAPE)
    with pytest.raises(ValueError, match="every"):
        Sampler(rowwise, d, shape=SHAPE).stream(2, every=0)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="sees no CUDA"):
            Sampler(rowwise, d, device="cuda", shape=SHAPE)


def test_explain_names_what_runs_and_what_does_not() -> None:
    d = GaussianDiffusion(schedule(4))
    said = Sampler(rowwise, d, shape=SHAPE).explain()
    assert "engine: eager" in said and "float32 on cpu" in said
    assert "not compile: " in said and "not cuda_graph: " in said
    reference = Sampler(rowwise, d, "reference", dtype=torch.bfloat16, shape=SHAPE).explain()
    assert "reference, in plain torch" in reference and "bfloat16" in reference


@pytest.mark.parametrize(
    "indices",
    [
        np.array([6, 2]),
        np.array([2, 6], dtype=np.uint8)[::-1],
        torch.tensor([6, 2], dtype=torch.int32),
        (i for i in (6, 2)),
        [np.int64(6), torch.tensor(2)],
    ],
    ids=["array", "view", "int32", "generator", "scalars"],
)
def test_indices_are_integers_in_any_container(indices: Any) -> None:
    sampler = Sampler(rowwise, GaussianDiffusion(schedule(4)), shape=SHAPE)
    expected = sampler.sample(indices=[6, 2])
    assert torch.equal(sampler.sample(indices=indices), expected)
    assert sampler.sample(indices=np.array([], dtype=np.int64)).shape == (0, *SHAPE)
    same = sampler.sample(np.int64(2), seed=np.uint64(2**63 + 1))
    assert torch.equal(same, sampler.sample(2, seed=2**63 + 1))


def test_the_default_dtype_changes_nothing(other_default_dtype: torch.dtype) -> None:
    sampler = Sampler(rowwise, GaussianDiffusion(schedule(20)), shape=SHAPE)

    def noise(step: int, shape: tuple[int, ...]) -> Tensor:
        return normal(step, torch.arange(shape[0]), 0, shape[1:], Purpose.FORWARD)

    def results() -> list[Tensor]:
        images = sampler.sample(3, seed=1)
        last = list(sampler.stream(3, seed=1, every=5))[-1]
        between = sampler.interpolate(images[0], images[1], 5, [0.3, 0.6])
        return [images, last.x_t, last.x_0, between, sampler.sample(3, noise=noise)]

    got = results()
    torch.set_default_dtype(torch.float32)
    assert all(g.dtype == torch.float32 for g in got)
    assert all(torch.equal(g, e) for g, e in zip(got, results(), strict=True))


class Conditional(nn.Module):
    """A network of three classes that tells so in its config; the class is added to the output."""

    def __init__(self, **config: Any) -> None:
        super().__init__()
        known = {"in_channels": 2, "sample_size": (3, 5), "num_class_embeds": 3}
        self.config = SimpleNamespace(**(known | {"class_embed_type": None} | config))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        self.seen.append(labels)
        return x * 0.1


@pytest.mark.parametrize(("labels", "got"), [(9, "9"), ([0, 3], "3"), (-1, "-1"), ([-2, 7], "-2")])
def test_labels_beyond_the_models_classes_are_refused(labels: Any, got: str) -> None:
    sampler = Sampler(Conditional(), GaussianDiffusion(schedule(2)))
    for call in (sampler.sample, sampler.stream):
        with pytest.raises(ValueError, match=rf"labels must lie in 0 to 2, got {got}$"):
            call(2, labels=labels)


def test_labels_that_a_network_embeds_by_itself_may_be_floating() -> None:
    timestep = Conditional(num_class_embeds=None, class_embed_type="timestep")
    Sampler(timestep, GaussianDiffusion(schedule(2))).sample(2, labels=[0.5, 7.25])
    assert timestep.seen[0].tolist() == [0.5, 7.25]
    identity = Conditional(num_class_embeds=None, class_embed_type="identity")
    sampler = Sampler(identity, GaussianDiffusion(schedule(2)))
    sampler.sample(2, labels=torch.ones(2, 4) / 3)
    assert torch.equal(identity.seen[0], torch.ones(2, 4) / 3)
    with pytest.raises(ValueError, match="one class or 2"):
        sampler.sample(2, labels=torch.ones(3, 4))
    with pytest.raises(ValueError, match="labels must be numbers, got 'cat'"):
        sampler.sample(2, labels="cat")  # type: ignore[arg-type]  # wrong on purpose


def test_a_shape_is_asked_for_only_where_it_is_needed() -> None:
    d = GaussianDiffusion(schedule(6))
    plain, told = Sampler(rowwise, d), Sampler(rowwise, d, shape=SHAPE)
    for call in (plain.sample, plain.stream):
        with pytest.raises(ValueError, match="give shape="):
            call(2)
    a, b = told.sample(2)
    for pair in ((a, b), (a[None], b[None])):
        expected = told.interpolate(*pair, 3, [0.2, 0.7])
        assert torch.equal(plain.interpolate(*pair, 3, [0.2, 0.7]), expected)
    with pytest.raises(ValueError, match="give shape="):
        plain.interpolate(a[0], b[0], 3)


@pytest.mark.parametrize("every", [1, 7, 50, 1000])
def test_stream_never_yields_a_state_that_is_not_finite(every: int) -> None:
    def model(x: Tensor, t: Tensor) -> Tensor:
        return torch.where((t == 33).reshape(-1, 1, 1, 1), math.nan, 0 * x)

    seen = []
    with pytest.raises(FloatingPointError, match="at timestep 33 "):
        for step in Sampler(model, GaussianDiffusion(schedule(40)), shape=SHAPE).stream(
            2, every=every
        ):
            seen.append(step)
    assert [step.t for step in seen] == [t for t in range(39, 33, -1) if t % every == 0]


def test_the_callers_noise_may_be_a_numpy_array() -> None:
    def noise(step: int, shape: tuple[int, ...]) -> Any:
        return np.random.default_rng(step).standard_normal(shape)

    sampler = Sampler(rowwise, GaussianDiffusion(schedule(6)), shape=SHAPE)
    expected = sampler.sample(3, noise=lambda *call: torch.from_numpy(noise(*call)).float())
    assert torch.equal(sampler.sample(3, noise=noise), expected)


# ---- interpolation


def interpolator() -> tuple[Sampler, Tensor, Tensor]:
    sampler = Sampler(rowwise, GaussianDiffusion(schedule(20)), shape=SHAPE)
    a, b = sampler.sample(2, seed=11)
    return sampler, a, b


def test_interpolation_is_encoder_mixture_and_chain() -> None:
    sampler, a, b = interpolator()
    d, t, lambdas = sampler.diffusion, 12, [0.0, 0.3, 1.0]
    got = sampler.interpolate(a, b, t, lambdas, seed=4)
    assert got.shape == (3, *SHAPE)
    z_a, z_b = normal(4, torch.tensor([0, 1]), t, SHAPE, Purpose.INTERPOLATION)
    step = torch.tensor([t])
    x_a = d.q_sample(a[None], step, z_a[None])
    x_b = d.q_sample(b[None], step, z_b[None])
    for image, weight in zip(got, lambdas, strict=True):
        x = (1 - weight) * x_a + weight * x_b
        for i in reversed(range(t + 1)):
            z = normal(4, torch.tensor([1 << 62]), i, SHAPE, Purpose.REVERSE)
            steps = torch.tensor([i])
            x = d.p_step(rowwise(x, steps), x, steps, z)
        assert (image - x[0]).abs().max() < 1e-5


def test_interpolation_decodes_with_noise_of_its_own() -> None:
    """Not with that of samples of the same seed, which would lead back to those samples."""
    shape = (3, 32, 32)
    diffusion = GaussianDiffusion(schedule(20), clip=None)
    sampler = Sampler(lambda x, t: torch.zeros_like(x), diffusion, shape=shape)
    decoded = sampler.interpolate(torch.zeros(shape), torch.zeros(shape), 19, [0.0], seed=5)
    for sample in (0, 1):
        draws = [normal(5, torch.tensor([sample]), i, shape, Purpose.REVERSE) for i in range(1, 20)]
        both = torch.stack([decoded.flatten(), sum(draws).flatten()])
        # Independent: 0 ± 0.018 (3072 values). The same noise: 0.54.
        assert abs(torch.corrcoef(both)[0, 1]) < 0.1


def test_the_noise_is_fixed_across_lambdas() -> None:
    sampler, a, b = interpolator()
    many = sampler.interpolate(a, b, 10, [0.2, 0.5, 0.5, 0.8])
    assert torch.equal(many[1], many[2])
    assert torch.equal(many[1], sampler.interpolate(a, b, 10, [0.5])[0])
    drawn_anew = sampler.interpolate(a, b, 10, [0.5, 0.5], resample_noise=True)
    assert torch.equal(drawn_anew[0], many[1])
    assert not torch.equal(drawn_anew[0], drawn_anew[1])


def test_at_lambda_0_and_1_only_one_image_matters() -> None:
    sampler, a, b = interpolator()
    ends = sampler.interpolate(a, b, 10, [0.0, 1.0])
    assert torch.equal(ends[0], sampler.interpolate(a, -b, 10, [0.0])[0])
    assert torch.equal(ends[1], sampler.interpolate(-a, b, 10, [1.0])[0])
    assert not torch.equal(ends[0], ends[1])


def test_little_noise_gives_the_images_back() -> None:
    """With the optimal estimate of x_0 near x_t, t = 0 decodes to nearly the mixture itself."""
    _, a, b = interpolator()
    exact = Sampler(lambda x, t: 0 * x, GaussianDiffusion(NoiseSchedule.linear(10)), shape=SHAPE)
    got = exact.interpolate(a, b, 0, [0.0, 0.5, 1.0])
    # q(x_0+1 | x_0) at the first step has a standard deviation of .01.
    for image, expected in zip(got, [a, (a + b) / 2, b], strict=True):
        assert (image - expected).abs().max() < 0.06


def test_pairs_run_as_a_batch() -> None:
    sampler, a, b = interpolator()
    both = sampler.interpolate(torch.stack([a, b]), torch.stack([b, a]), 10, [0.25, 0.75])
    assert both.shape == (2, 2, *SHAPE)
    assert torch.equal(both[:, 0], sampler.interpolate(a, b, 10, [0.25, 0.75]))


def test_samples_of_one_and_of_three_dimensions() -> None:
    def model(x: Tensor, t: Tensor) -> Tensor:
        return x.sin()

    for shape in ((2, 7), (1, 2, 3, 4)):
        sampler = Sampler(model, GaussianDiffusion(schedule(10)), shape=shape)
        a, b = sampler.sample(2)
        assert a.shape == shape
        assert sampler.interpolate(a, b, 5, [0.5, 1.0]).shape == (2, *shape)


def test_the_callers_noise_in_an_interpolation() -> None:
    sampler, a, b = interpolator()
    calls = []

    def noise(step: int, shape: tuple[int, ...]) -> Tensor:
        calls.append((step, shape))
        if step == 20:
            which = sum(s == 20 for s, _ in calls) - 1
            return normal(0, torch.tensor([which]), 3, SHAPE, Purpose.INTERPOLATION)
        return normal(0, torch.tensor([1 << 62]), step, SHAPE, Purpose.REVERSE)

    got = sampler.interpolate(a, b, 3, [0.2, 0.9], noise=noise)
    assert [step for step, _ in calls] == [20, 20, 3, 2, 1, 0]
    assert {shape for _, shape in calls} == {(1, *SHAPE)}
    assert torch.equal(got, sampler.interpolate(a, b, 3, [0.2, 0.9]))


def test_wrong_interpolations_are_refused() -> None:
    sampler, a, b = interpolator()
    for wrong in (a[:1], a[None, None]):
        with pytest.raises(ValueError, match="sample's shape"):
            sampler.interpolate(wrong, wrong, 3)
    with pytest.raises(ValueError, match="sample's shape"):
        sampler.interpolate(a, b[None], 3)
    with pytest.raises(ValueError, match="0 to 19"):
        sampler.interpolate(a, b, 20)
    with pytest.raises(ValueError, match="at least one"):
        sampler.interpolate(a, b, 3, [])
    with pytest.raises(ValueError, match=r"t must be an integer, got 1\.5"):
        sampler.interpolate(a, b, 1.5)  # type: ignore[arg-type]  # wrong on purpose
    for weight in (math.nan, math.inf):
        with pytest.raises(ValueError, match=f"lambdas must be finite numbers, got {weight}"):
            sampler.interpolate(a, b, 3, [0.5, weight])
    wrong_kinds: list[Any] = [3, 0.5, torch.tensor(0.5), None]
    for weights in wrong_kinds:
        with pytest.raises(ValueError, match="lambdas must be a list of weights, got "):
            sampler.interpolate(a, b, 3, weights)
    with pytest.raises(ValueError, match="lambdas must be finite numbers, got 'x'"):
        sampler.interpolate(a, b, 3, ["x"])  # type: ignore[list-item]  # wrong on purpose
    bytes_of_a = ((a + 1) * 127).to(torch.uint8)
    for images in (bytes_of_a, bytes_of_a.numpy()):
        with pytest.raises(ValueError, match=r"floating.*from_uint8.*uint8"):
            sampler.interpolate(images, images, 3)
    with pytest.raises(ValueError, match="a and b must be tensors, got list"):
        sampler.interpolate([0.0], b, 3)  # type: ignore[arg-type]  # wrong on purpose


def test_images_and_weights_may_be_numpy_arrays() -> None:
    sampler, a, b = interpolator()
    expected = sampler.interpolate(a, b, 5, [0.25, 0.5])
    got = sampler.interpolate(a.numpy(), b.double().numpy(), 5, np.array([0.25, 0.5]))
    assert torch.equal(got, expected)


@pytest.mark.parametrize("resample_noise", [False, True])
def test_no_pairs(resample_noise: bool) -> None:
    sampler, a, _ = interpolator()
    none = a[None][:0]
    got = sampler.interpolate(none, none, 5, [0.25, 0.5], resample_noise=resample_noise)
    assert got.shape == (2, 0, *SHAPE) and got.dtype == torch.float32
