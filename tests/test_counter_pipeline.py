"""accelerate(pipeline, noise="counter"): DDPMPipeline's call, a Sampler's images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL.Image import Image
from torch import Tensor

import fastddpm
from fastddpm.integrations import diffusers as integration
from fastddpm.noise import Purpose, normal

diffusers = pytest.importorskip("diffusers")

SMALL: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
}
SHAPE = (3, 8, 8)
STEPS = 7


def plain(scheduler: str = "DDPMScheduler", channels: int = 3, **config: Any) -> Any:
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(**SMALL, out_channels=channels).eval()
    given = getattr(diffusers, scheduler)(**config)
    pipeline = diffusers.DDPMPipeline(unet=unet, scheduler=given)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def counted(pipeline: Any, engine: str = "reference") -> Any:
    """By default with an engine that compiles nothing, neither the chain nor the network."""
    fast = fastddpm.accelerate(pipeline, engine, noise="counter")
    fast.set_progress_bar_config(disable=True)
    return fast


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(pipeline: Any, seed: int = 7, count: int = 3, steps: int = STEPS) -> Tensor:
    call = {"batch_size": count, "num_inference_steps": steps, "output_type": "pt"}
    images: Tensor = pipeline(generator=seeded(seed), **call).images
    return images


def stepped(scheduler: Any, unet: Any, seed: int, count: int) -> Tensor:
    """The loop through diffusers' ``step``, which is given the counter's noise."""
    indices, key = torch.arange(count), torch.tensor([seed])
    x = normal(key, indices, torch.tensor([0]), SHAPE, Purpose.INITIAL)
    schedulers = pytest.importorskip("fastddpm.integrations.schedulers")
    scheduler.set_timesteps(STEPS)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        for t in scheduler.timesteps:
            z = normal(key, indices, t.reshape(1), SHAPE, Purpose.REVERSE)
            patch.setattr(schedulers, "_drawn", lambda *_, z=z: z)
            x = scheduler.step(unet(x, t).sample, t, x).prev_sample
    return (x / 2 + 0.5).clamp(0, 1)


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_images_are_a_samplers(engine: str) -> None:
    pipeline = plain(variance_type="fixed_large")
    diffusion = fastddpm.GaussianDiffusion(
        fastddpm.NoiseSchedule.linear(1000), variance="fixed_large", last_step_noise="diffusers"
    )
    fast = counted(pipeline, engine)
    sampler = fastddpm.Sampler(fastddpm.accelerate(pipeline.unet), diffusion, engine)
    fast.scheduler.set_timesteps(STEPS)
    expected = sampler.sample(3, seed=7, steps=fast.scheduler.timesteps.tolist())
    found = drawn(fast)
    assert found.shape == (3, *SHAPE) and found.dtype == torch.float32
    assert torch.equal(found, (expected / 2 + 0.5).clamp(0, 1))
    assert found.std() > 0.01


@pytest.mark.parametrize("compatibility, tolerance", [("exact", 2e-5), ("diffusers", 2e-3)])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"variance_type": "fixed_large", "timestep_spacing": "trailing"},
        {"prediction_type": "v_prediction", "timestep_spacing": "linspace"},
        {"variance_type": "learned_range", "channels": 6},
        {"thresholding": True, "sample_max_value": 1.5, "clip_sample": False},
        {"clip_sample": False, "prediction_type": "sample"},
        {"beta_schedule": "squaredcos_cap_v2", "steps_offset": 1},
        {"trained_betas": np.linspace(1e-4, 0.02, 1000, dtype=np.float32)},
    ],
    ids=lambda config: ",".join(config) or "default",
)
def test_steps_are_the_schedulers(
    config: dict[str, Any], compatibility: str, tolerance: float
) -> None:
    """ "diffusers" has float32 tables there, and noise in the last step of "trailing"."""
    settings = {k: v for k, v in config.items() if k != "channels"}
    scheduler = integration.FastDDPMScheduler(**settings, compatibility=compatibility)
    pipeline = plain(channels=config.get("channels", 3))
    pipeline.register_modules(scheduler=scheduler)
    found = drawn(counted(pipeline))
    expected = stepped(scheduler, pipeline.unet, 7, 3)
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def test_an_image_depends_on_seed_and_index_alone() -> None:
    fast = counted(plain())
    three = drawn(fast)
    torch.testing.assert_close(drawn(fast, count=2), three[:2], rtol=0, atol=1e-5)
    assert torch.equal(drawn(fast), three)
    assert (drawn(fast, seed=8) - three).abs().max() > 0.1
    biggest = drawn(fast, seed=2**63 + 5)
    assert torch.equal(drawn(fast, seed=2**63 + 5), biggest)


def test_which_seed_a_generator_stands_for() -> None:
    fast = counted(plain())
    call = {"batch_size": 2, "num_inference_steps": 3, "output_type": "pt", "return_dict": False}
    first = fast(generator=seeded(7), **call)[0]
    again = seeded(7)
    images = [fast(generator=again, **call)[0] for _ in range(3)]
    assert torch.equal(images[0], first)
    # Other images at each call, and the same ones of the same generator in the same state.
    assert (images[1] - first).abs().max() > 0.1 and (images[2] - images[1]).abs().max() > 0.1
    moved = seeded(7)
    fast(generator=moved, **call)
    assert torch.equal(fast(generator=[moved], **call)[0], images[1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        a, b = (fast(**call)[0] for _ in range(2))
        torch.manual_seed(3)
        assert torch.equal(fast(**call)[0], a) and (a - b).abs().max() > 0.1


def test_outputs_are_diffusers() -> None:
    pipeline = plain()
    fast = counted(pipeline)
    assert isinstance(fast, diffusers.DDPMPipeline) and fast is not pipeline
    for output_type in ("pil", "np", "pt"):
        call = {"batch_size": 2, "num_inference_steps": 2, "output_type": output_type}
        ours, theirs = (each(generator=seeded(1), **call) for each in (fast, pipeline))
        assert type(ours) is type(theirs) is diffusers.ImagePipelineOutput
        assert type(ours.images) is type(theirs.images) and len(ours.images) == 2
        if output_type == "pil":
            assert all(isinstance(one, Image) and one.size == (8, 8) for one in ours.images)
        else:
            assert ours.images.shape == theirs.images.shape
            assert ours.images.dtype == theirs.images.dtype
            assert ours.images.min() >= 0 and ours.images.max() <= 1
        answer = fast(generator=seeded(1), **call, return_dict=False)
        assert isinstance(answer, tuple) and len(answer) == 1
    assert len(fast(num_inference_steps=2).images) == 1


def test_it_follows_weights_network_and_scheduler() -> None:
    pipeline = plain()
    fast = counted(pipeline)
    before = drawn(fast)
    with torch.no_grad():
        pipeline.unet.conv_out.bias.add_(0.5)
    changed = drawn(fast)
    assert (changed - before).abs().max() > 0.01
    assert torch.equal(changed, drawn(counted(pipeline)))
    clipless = integration.FastDDPMScheduler(clip_sample=False, compatibility="exact")
    fast.register_modules(scheduler=clipless)
    torch.testing.assert_close(
        drawn(fast), stepped(clipless, pipeline.unet, 7, 3), rtol=0, atol=2e-5
    )


def test_a_plain_scheduler_in_its_place() -> None:
    fast, clipless = counted(plain()), diffusers.DDPMScheduler(clip_sample=False)
    fast.scheduler = clipless
    assert torch.equal(drawn(fast), drawn(counted(plain(clip_sample=False))))
    assert type(fast.scheduler).__name__ == "FastDDPMScheduler"
    fast.scheduler = diffusers.DDIMScheduler()
    with pytest.raises(ValueError, match=r"expected a DDPMScheduler.*got a DDIMScheduler"):
        drawn(fast)


@pytest.mark.parametrize("compatibility", ["diffusers", "exact"])
@pytest.mark.parametrize("name", ["betas", "alphas_cumprod"])
def test_betas_changed_later_are_refused(name: str, compatibility: str) -> None:
    fast = counted(plain())
    fast.register_modules(scheduler=integration.FastDDPMScheduler(compatibility=compatibility))
    drawn(fast)
    setattr(fast.scheduler, name, getattr(fast.scheduler, name) * 0.9)
    with pytest.raises(ValueError, match="betas to be those of its config"):
        drawn(fast)


def test_the_progress_bar_counts_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = counted(plain())
    fast.set_progress_bar_config(disable=False)
    bars, own = [], fast.progress_bar
    monkeypatch.setattr(fast, "progress_bar", lambda **k: bars.append(own(**k)) or bars[-1])
    drawn(fast)
    assert [(bar.n, bar.total) for bar in bars] == [(STEPS, STEPS)]
    fast.set_progress_bar_config(disable=True)
    drawn(fast)
    assert bars[1].disable


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"output_type": "jpg"}, "output_type in .*'pil', 'np', 'pt'.*got 'jpg'"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": 2.0}, "batch_size must be an integer"),
        ({"num_inference_steps": 0}, "num_inference_steps must be at least 1"),
        ({"num_inference_steps": 1001}, "1001"),
        ({"generator": [seeded(1), seeded(2)]}, "one torch.Generator.*got a list of 2"),
        ({"generator": 7}, "one torch.Generator.*got int"),
    ],
)
def test_wrong_arguments(wrong: dict[str, Any], message: str) -> None:
    fast = counted(plain())
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=message):
        fast(**{"num_inference_steps": 2, **wrong})
    assert torch.equal(torch.get_rng_state(), before)


def test_what_has_no_counter_noise() -> None:
    ddim = plain("DDIMScheduler")
    for model, given in (
        (ddim, "a DDPMPipeline with a DDIMScheduler"),
        (diffusers.DDIMPipeline(ddim.unet, ddim.scheduler), "a DDIMPipeline with a DDIMScheduler"),
        (ddim.unet, "a UNet2DModel;"),
        (counted(plain()), "a CounterDDPMPipeline;"),
    ):
        with pytest.raises(ValueError, match=f"DDPMPipeline with a DDPMScheduler, got {given}"):
            fastddpm.accelerate(model, noise="counter")
    with pytest.raises(ValueError, match=r"a noise in .*'torch', 'counter'.*got 'philox'"):
        fastddpm.accelerate(plain(), noise="philox")
    with pytest.raises(ValueError, match=r"CounterDDPMPipeline.*accelerate the pipeline"):
        fastddpm.accelerate(counted(plain()))
    with pytest.raises(ValueError, match="variance_type 'learned'"):
        counted(plain(variance_type="learned", channels=6))
    edited = plain()
    edited.scheduler.alphas_cumprod = edited.scheduler.alphas_cumprod * 0.9
    with pytest.raises(ValueError, match="betas to be those of its config"):
        counted(edited)
    with pytest.raises(ValueError, match="cuda_graph"):
        counted(plain(), "cuda_graph")
