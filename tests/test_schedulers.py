"""FastDDPMScheduler and FastDDIMScheduler against diffusers' own, step by step."""

from __future__ import annotations

import copy
import itertools
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from capture import modes
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastddpm.checkpoint.schedulers import read_scheduler
from fastddpm.integrations import diffusers as integration
from fastddpm.integrations.affine_step import LEARNED_RANGE, AffineStep
from fastddpm.kernels.ancestral_step.reference import STEP_COLUMNS

diffusers = pytest.importorskip("diffusers")
FastDDPMScheduler = integration.FastDDPMScheduler
FastDDIMScheduler = integration.FastDDIMScheduler
fast_scheduler = integration.fast_scheduler

THEIRS = {FastDDPMScheduler: diffusers.DDPMScheduler, FastDDIMScheduler: diffusers.DDIMScheduler}
SPACINGS = ("leading", "linspace", "trailing")
PREDICTIONS = ("epsilon", "sample", "v_prediction")
FIXED = ("fixed_small", "fixed_small_log", "fixed_large")
# Each product and each sum is rounded once or twice, here and there.
ROUNDINGS = 6


def images(channels: int = 3, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, channels, 4, 5, generator=generator).to(dtype)


def pair(fast: Any, **config: Any) -> tuple[Any, Any]:
    return THEIRS[fast](**config), fast(**config)


def stepped(scheduler: Any, t: Any, x: Tensor, output: Tensor, **call: Any) -> Any:
    generator = torch.Generator().manual_seed(7)
    return scheduler.step(output, t, x, generator=generator, **call), generator.get_state()


def agree(expected: Any, found: Any, x: Tensor, output: Tensor, fast: Any, t: Any) -> None:
    """The two outputs, to what the roundings of the terms of the affine step come to."""
    made = fast._current()
    affine = made[0] if isinstance(made[0], AffineStep) else list(made[1].values())[-1]
    row = dict(zip(STEP_COLUMNS, affine.rows[int(t)].abs().tolist(), strict=True))
    rounding = max(torch.finfo(one.dtype).eps for one in (x, output))
    eps = ROUNDINGS * rounding
    state, out, x_0, x_prev = (
        float(tensor.abs().max())
        for tensor in (x, output, expected.pred_original_sample, expected.prev_sample)
    )
    factor = row["x0_from_x"] if affine.prediction == "epsilon_in_x" else 1
    share = factor * row["x0_from_output"] * out
    off = {"pred_original_sample": eps * (row["x0_from_x"] * state + share)}
    of_terms = row["mean_from_x"] * state + row["mean_from_output"] * out + 4 * row["sigma"]
    carried = row["mean_from_x0"] * (off["pred_original_sample"] + eps * x_0)
    exponent = 0.0
    if affine.variance == LEARNED_RANGE:
        # What a log-variance is off by, the exponential makes a relative error of sigma z.
        fraction = (out + 1) / 2
        low, high = row["log_variance_min"], row["log_variance_max"]
        exponent = (fraction * high + (1 + fraction) * low) / 2
    # Half a last bit each: four roundings of a term on their way to the exponent, two on ours.
    of_noise = 6 / 2 * rounding * exponent * x_prev
    off["prev_sample"] = carried + eps * (of_terms + x_prev) + of_noise
    for name, bound in off.items():
        a, b = getattr(expected, name), getattr(found, name)
        assert a.shape == b.shape and a.dtype == b.dtype
        assert (a - b).abs().max() <= bound, (name, int(t))


def compare_chain(theirs: Any, fast: Any, channels: int = 3, **call: Any) -> None:
    """Some timesteps of both, the last among them, from the same states and generators."""
    assert theirs.timesteps.tolist() == fast.timesteps.tolist()
    last = len(theirs.timesteps) - 1
    for k in sorted({*range(0, last, max(1, last // 8)), last}):
        x, output = images(seed=k), images(channels, seed=k + 1)
        output[:, 3:] = output[:, 3:].abs()
        t = theirs.timesteps[k]
        expected, left = stepped(theirs, t, x, output, **call)
        found, own = stepped(fast, fast.timesteps[k], x, output, **call)
        agree(expected, found, x, output, fast, t)
        assert torch.equal(left, own)


# ---- the same numbers


@pytest.mark.parametrize("variance", [*FIXED, "learned", "learned_range"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_ddpm_steps(spacing: str, prediction: str, variance: str) -> None:
    for n, clip in itertools.product((7, 50, 1000), (False, True)):
        theirs, fast = pair(
            FastDDPMScheduler,
            timestep_spacing=spacing,
            prediction_type=prediction,
            variance_type=variance,
            clip_sample=clip,
        )
        theirs.set_timesteps(n)
        fast.set_timesteps(n)
        compare_chain(theirs, fast, 6 if "learned" in variance else 3)


@pytest.mark.parametrize("rederive", [False, True, None])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_ddim_steps(spacing: str, prediction: str, rederive: bool | None) -> None:
    for n, clip, eta, one in itertools.product((7, 50), (False, True), (0.0, 0.6, 1.0), (0, 1)):
        config = {"timestep_spacing": spacing, "prediction_type": prediction}
        theirs, fast = pair(
            FastDDIMScheduler, **config, clip_sample=clip, set_alpha_to_one=bool(one)
        )
        theirs.set_timesteps(n)
        fast.set_timesteps(n)
        compare_chain(theirs, fast, eta=eta, use_clipped_model_output=rederive)


SCHEDULES = [
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"beta_schedule": "sigmoid"},
    {"beta_schedule": "laplace"},
    {"trained_betas": [0.1, 0.2, 0.05, 0.4], "num_train_timesteps": 4},
    {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    {"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.9},
    {"clip_sample_range": 2.5, "steps_offset": 1},
]


@pytest.mark.parametrize("config", SCHEDULES, ids=str)
@pytest.mark.parametrize("fast_class", THEIRS)
def test_every_schedule(fast_class: Any, config: dict[str, Any]) -> None:
    if fast_class is FastDDIMScheduler and config.get("beta_schedule") in ("sigmoid", "laplace"):
        with pytest.raises(NotImplementedError):
            fast_class(**config)
        return
    theirs, fast = pair(fast_class, **config)
    for name in ("betas", "alphas", "alphas_cumprod"):
        assert torch.equal(getattr(theirs, name), getattr(fast, name))
    n = min(20, len(theirs.betas))
    theirs.set_timesteps(n)
    fast.set_timesteps(n)
    compare_chain(theirs, fast)


@given(
    t=st.integers(0, 999),
    variance=st.sampled_from([*FIXED, "learned_range", "learned", "unheard of"]),
    prediction=st.sampled_from(PREDICTIONS),
    config=st.fixed_dictionaries(
        {},
        optional={
            "clip_sample": st.booleans(),
            "clip_sample_range": st.floats(0.1, 5),
            "beta_end": st.floats(0.001, 0.05),
            "thresholding": st.booleans(),
            "dynamic_thresholding_ratio": st.floats(0, 1),
            "sample_max_value": st.floats(0.5, 3),
        },
    ),
)
@settings(max_examples=60, deadline=None)
def test_any_ddpm_step(t: int, variance: str, prediction: str, config: dict[str, Any]) -> None:
    """Before set_timesteps the chain goes through all of them, and t is a number."""
    config |= {"variance_type": variance, "prediction_type": prediction}
    theirs, fast = pair(FastDDPMScheduler, **config)
    x, output = images(), images(6 if "learned" in variance else 3, 1).abs()
    expected, _ = stepped(theirs, t, x, output)
    found, _ = stepped(fast, t, x, output)
    agree(expected, found, x, output, fast, t)


def chain(scheduler: Any, n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A whole chain with a network that knows nothing but the time."""
    scheduler.set_timesteps(n)
    x, generator = images(dtype=dtype), torch.Generator().manual_seed(3)
    for t in scheduler.timesteps:
        x = scheduler.step(x * (t / (t + 1)), t, x, generator=generator).prev_sample
    return x


@pytest.mark.parametrize("fast_class", THEIRS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_sums_over_a_thousand_steps(fast_class: Any, prediction: str) -> None:
    theirs, fast = pair(fast_class, prediction_type=prediction, clip_sample=True)
    expected, found = chain(theirs, 1000), chain(fast, 1000)
    assert abs(expected.abs().sum() - found.abs().sum()) < 1e-2
    assert (expected - found).abs().max() < 1e-3 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fast_class", THEIRS)
def test_other_dtypes(fast_class: Any, dtype: torch.dtype) -> None:
    """In half precision diffusers rounds every operation, here the result is rounded once."""
    theirs, fast = pair(fast_class, prediction_type="v_prediction")
    theirs.set_timesteps(20)
    fast.set_timesteps(20)
    x, output = images(dtype=dtype), images(seed=1, dtype=dtype)
    for t in theirs.timesteps:
        expected, _ = stepped(theirs, t, x, output)
        found, _ = stepped(fast, t, x, output)
        agree(expected, found, x, output, fast, t)


def test_mixed_dtypes_promote() -> None:
    theirs, fast = pair(FastDDPMScheduler)
    for x, output in itertools.permutations((torch.float32, torch.float16), 2):
        given = images(dtype=x), images(seed=1, dtype=output)
        expected, _ = stepped(theirs, 400, *given)
        found, _ = stepped(fast, 400, *given)
        agree(expected, found, *given, fast, 400)


def test_any_memory_layout() -> None:
    theirs, fast = pair(FastDDPMScheduler)
    x = images().to(memory_format=torch.channels_last)
    output = images(seed=1).permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)
    expected, _ = stepped(theirs, 400, x, output)
    found, _ = stepped(fast, 400, x, output)
    agree(expected, found, x, output, fast, 400)


def test_gradients_flow() -> None:
    theirs, fast = pair(FastDDPMScheduler)
    found = []
    for scheduler in (theirs, fast):
        x, output = images().requires_grad_(), images(seed=1).requires_grad_()
        step, _ = stepped(scheduler, 400, x, output)
        step.prev_sample.square().sum().backward()
        found.append((x.grad, output.grad))
    for a, b in zip(*found, strict=True):
        assert a is not None and b is not None
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fast_class", THEIRS)
def test_it_can_be_transformed(fast_class: Any) -> None:
    theirs, fast = pair(fast_class)
    output, results = images(seed=1), []
    for scheduler in (theirs, fast):
        scheduler.set_timesteps(10)

        def last(x: Tensor, scheduler: Any = scheduler) -> Tensor:
            step = scheduler.step(output, scheduler.timesteps[-1], x)
            return step.pred_original_sample

        sums = torch.func.grad(lambda x, last=last: last(x).square().sum())(images())
        each = torch.func.vmap(last)(images()[None])[0]
        _, along = torch.func.jvp(last, (images(),), (images(seed=2),))
        results.append((sums, each, along))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fast_class", THEIRS)
def test_a_list_of_generators_draws_for_each_sample(fast_class: Any) -> None:
    call = {} if fast_class is FastDDPMScheduler else {"eta": 1.0}
    results = []
    for scheduler in pair(fast_class):
        scheduler.set_timesteps(10)
        generators = [torch.Generator().manual_seed(k) for k in (5, 6)]
        step = scheduler.step(images(seed=1), 500, images(), generator=generators, **call)
        results.append((step, generators))
    agree(results[0][0], results[1][0], images(), images(seed=1), scheduler, 500)
    for a, b in zip(results[0][1], results[1][1], strict=True):
        assert torch.equal(a.get_state(), b.get_state())


@pytest.mark.parametrize("given", [None, torch.default_generator])
@pytest.mark.parametrize("fast_class", THEIRS)
def test_torchs_default_generator(fast_class: Any, given: torch.Generator | None) -> None:
    call = {} if fast_class is FastDDPMScheduler else {"eta": 1.0}
    results = []
    with torch.random.fork_rng(devices=[]):
        for scheduler in pair(fast_class):
            scheduler.set_timesteps(10)
            torch.manual_seed(3)
            step = scheduler.step(images(seed=1), 500, images(), generator=given, **call)
            results.append((step, torch.get_rng_state()))
    agree(results[0][0], results[1][0], images(), images(seed=1), scheduler, 500)
    assert torch.equal(results[0][1], results[1][1])


def test_threads_share_torchs_default_generator() -> None:
    """Each step has noise of its own, and all of them what one after the other would have."""
    nothing = torch.zeros(4, 3, 8, 8)

    def steps(count: int) -> list[bytes]:
        scheduler = FastDDPMScheduler()
        drawn = (scheduler.step(nothing, 500, nothing).prev_sample for _ in range(count))
        return [one.numpy().tobytes() for one in drawn]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        expected = steps(6 * 20)
        torch.manual_seed(3)
        with ThreadPoolExecutor(4) as pool:
            threads = [pool.submit(steps, 20) for _ in range(5)]
            found = steps(20) + [one for each in threads for one in each.result()]
    assert sorted(found) == sorted(expected) and len(set(found)) == len(found)


def test_given_noise_is_the_noise() -> None:
    theirs, fast = pair(FastDDIMScheduler)
    z = images(seed=9)
    for scheduler in (theirs, fast):
        scheduler.set_timesteps(10)
    call = {"eta": 0.7, "variance_noise": z}
    expected = theirs.step(images(seed=1), 500, images(), **call)
    found = fast.step(images(seed=1), 500, images(), **call)
    agree(expected, found, images(), images(seed=1), fast, 500)
    # As in torch, one noise may serve all samples, or all pixels.
    for shared in (z[:1], z[0], z[0, :1, :1, :1]):
        broadcast = {"eta": 0.7, "variance_noise": shared}
        expected = theirs.step(images(seed=1), 500, images(), **broadcast)
        found = fast.step(images(seed=1), 500, images(), **broadcast)
        agree(expected, found, images(), images(seed=1), fast, 500)
    with pytest.raises(ValueError, match="generator and variance_noise"):
        fast.step(images(seed=1), 500, images(), generator=torch.Generator(), **call)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("method", ["add_noise", "get_velocity"])
def test_levels_of_noise_have_the_same_bits(method: str, dtype: torch.dtype) -> None:
    theirs, fast = pair(FastDDPMScheduler)
    given = (images(dtype=dtype), images(seed=1, dtype=dtype), torch.tensor([3, 900]))
    assert torch.equal(getattr(theirs, method)(*given), getattr(fast, method)(*given))


# ---- a scheduler of diffusers


@pytest.mark.parametrize("compatibility", ["diffusers", "exact"])
@pytest.mark.parametrize("fast_class", THEIRS)
def test_the_config_goes_there_and_back(
    fast_class: Any, compatibility: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = THEIRS[fast_class]
    scheduler = fast_class(beta_end=0.03, clip_sample=False, compatibility=compatibility)
    scheduler.save_pretrained(tmp_path)
    for again in (
        fast_class.from_pretrained(tmp_path),
        fast_class.from_config(scheduler.config),
        copy.deepcopy(scheduler),
        pickle.loads(pickle.dumps(scheduler)),
    ):
        assert again.config.compatibility == compatibility and again.config.beta_end == 0.03
        assert torch.equal(again.alphas_cumprod, scheduler.alphas_cumprod)
        again.set_timesteps(5)
        again.step(images(), again.timesteps[0], images())
    back = theirs.from_config(scheduler.config)
    assert type(back) is theirs and not back.config.clip_sample
    assert fast_class.from_config(back.config).config.beta_end == 0.03
    fast_class.from_config(theirs(beta_end=0.03).config, compatibility="exact")
    read = read_scheduler(dict(theirs.load_config(tmp_path)), "config")
    assert read.clip is None and read.num_steps == 1000


@pytest.mark.parametrize("fast_class", THEIRS)
def test_it_is_one_of_theirs(fast_class: Any) -> None:
    theirs, fast = pair(fast_class)
    assert isinstance(fast, type(theirs)) and fast.order == 1 and fast.init_noise_sigma == 1.0
    assert set(theirs.compatibles) <= set(fast.compatibles) and len(fast) == 1000
    left_out = ("compatibility", "_use_default_values")
    own = {k: v for k, v in fast.config.items() if k not in left_out}
    assert own == {k: v for k, v in theirs.config.items() if k != "_use_default_values"}
    assert vars(theirs).keys() <= vars(fast).keys()
    assert fast.scale_model_input(images(), 3).equal(images())


def test_a_default_is_left_out_of_another_classs_config() -> None:
    fast = FastDDPMScheduler(beta_end=0.03)
    assert "compatibility" in fast.config["_use_default_values"]
    assert "compatibility" not in diffusers.DDPMScheduler.from_config(fast.config).config
    assert FastDDPMScheduler(compatibility="exact").config["compatibility"] == "exact"


def test_custom_timesteps() -> None:
    theirs, fast = pair(FastDDPMScheduler)
    for scheduler in (theirs, fast):
        scheduler.set_timesteps(timesteps=[900, 40, 3])
    compare_chain(theirs, fast)
    for t in fast.timesteps:
        assert fast.previous_timestep(t) == theirs.previous_timestep(t)
    with pytest.raises(IndexError, match="expected a timestep that the chain visits, got 41"):
        fast.step(images(), 41, images())
    for wrong in ([3, 40], [1000, 2]):
        with pytest.raises(ValueError):
            fast.set_timesteps(timesteps=wrong)
    with pytest.raises(ValueError):
        fast.set_timesteps(3, timesteps=[2])


def test_tables_follow_the_attributes() -> None:
    theirs, fast = pair(FastDDPMScheduler)
    for change in (
        {"timesteps": torch.tensor([700, 300, 10])},
        {"alphas_cumprod": torch.linspace(0.99, 0.01, 1000)},
        {"num_inference_steps": 3},
    ):
        for scheduler in (theirs, fast):
            vars(scheduler).update(change)
        compare_chain(theirs, fast)
    for scheduler in (theirs, fast):
        scheduler.register_to_config(clip_sample=False)
    compare_chain(theirs, fast)


@pytest.mark.parametrize("fast_class", THEIRS)
def test_nothing_waits_for_the_device(fast_class: Any) -> None:
    """In a loop over timesteps, and with a timestep that only the device knows."""
    fast = fast_class()
    fast.set_timesteps(5)
    x, output = images(), images(seed=1)
    expected = [fast.step(output, int(t), x).pred_original_sample for t in fast.timesteps]
    with modes.SyncMode(), modes.no_host_reads(modes.raise_sync):
        found = [fast.step(output, t, x).pred_original_sample for t in fast.timesteps]
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a, b)


def test_a_row_read_on_the_device_is_the_same_row() -> None:
    fast = FastDDPMScheduler(variance_type="learned_range")
    affine, _, _ = fast._current()
    x, output, noise = images(), images(6, 1), images(seed=2)
    t = torch.tensor(400)
    affine(x, output, 400, noise)
    with modes.SyncMode():
        read = affine(x, output, t, noise)
    for a, b in zip(read, affine(x, output, 400, noise), strict=True):
        assert torch.equal(a, b)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="expected a compatibility in"):
        FastDDPMScheduler(compatibility="openai")
    with pytest.raises(ValueError, match="you need to run 'set_timesteps'"):
        FastDDIMScheduler().step(images(), 3, images())
    for fast in (FastDDPMScheduler, FastDDIMScheduler):
        wrong = fast(prediction_type="score")
        wrong.set_timesteps(10)
        with pytest.raises(ValueError, match="prediction_type given as score"):
            wrong.step(images(), 100, images())
        with pytest.raises(NotImplementedError):
            fast(beta_schedule="unheard of")
    with pytest.raises(ValueError, match=r"model_output: expected 6 channels.*got \[2, 3, 4, 5\]"):
        FastDDPMScheduler(variance_type="learned").step(images(), 30, images())
    with pytest.raises(ValueError, match="at timestep 999 epsilon says nothing of x_0"):
        blind = FastDDPMScheduler(rescale_betas_zero_snr=True, compatibility="exact")
        blind.step(images(), 999, images())


def test_thresholds_have_no_limit() -> None:
    """torch.quantile refuses as much."""
    x = torch.zeros(1, 2**24 + 7)
    x[0, :100] = 3.0
    fast = FastDDPMScheduler(thresholding=True, prediction_type="sample", sample_max_value=9.0)
    fast.register_to_config(dynamic_thresholding_ratio=1.0)
    assert fast.step(x, 0, x).pred_original_sample[0, :101].tolist() == [1.0] * 100 + [0.0]


def test_only_what_is_diffusers_own_is_swapped() -> None:
    own = diffusers.DDPMScheduler(beta_end=0.03)
    assert type(fast_scheduler(own)) is FastDDPMScheduler
    assert fast_scheduler(own).config.beta_end == 0.03
    assert type(fast_scheduler(diffusers.DDIMScheduler())) is FastDDIMScheduler
    other = diffusers.EulerDiscreteScheduler()
    assert fast_scheduler(other) is other
    own.alphas_cumprod = own.alphas_cumprod * 0.9
    assert fast_scheduler(own) is own


def test_trained_betas_of_numpy() -> None:
    betas = np.array([0.1, 0.3])
    exact = FastDDPMScheduler(2, trained_betas=betas, compatibility="exact")
    assert exact.betas.tolist() == [0.1, 0.3] and exact.betas.dtype == torch.float64
