"""The adapter on cases that the public sets do not hold: other lengths, losses, recordings."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fastddpm.checkpoint import from_pretrained, save_openai, save_pretrained
from fastddpm.checkpoint.openai_kwargs import read_kwargs, unet_config
from fastddpm.diffusion import GaussianDiffusion
from fastddpm.schedule import NoiseSchedule
from fastddpm.unet import UNet, UNetConfig

sys.path.insert(0, str(Path(__file__).parent))

from golden_groups import chains, train

SHAPE = (2, 3, 8, 8)
OPENAI = {
    "image_size": 8,
    "model_channels": 32,
    "num_res_blocks": 1,
    "attention_resolutions": [2],
    "channel_mult": [1],
}
SMALL = UNetConfig(
    sample_size=8,
    block_out_channels=(8,),
    down_block_types=("DownBlock2D",),
    up_block_types=("UpBlock2D",),
    layers_per_block=1,
    norm_num_groups=4,
    attention_head_dim=None,
)


def context(**tensors: np.ndarray) -> Any:
    """What the checker hands over: draws of the case's seed, and the set's tensors."""

    def noise(case: dict[str, Any]) -> Iterator[np.ndarray]:
        draws = np.random.RandomState(case["noise"]["seed"])
        while True:
            yield draws.standard_normal(case["noise"]["shape"]).astype(np.float32)

    return SimpleNamespace(noise=noise, tensor=lambda name: tensors[name])


def drawn(config: UNetConfig) -> UNet:
    torch.manual_seed(0)
    unet = UNet(config).eval()
    for parameter in unet.parameters():
        parameter.data.normal_(0, 0.1)
    return unet


# ---- chains


def chain(folder: Path, n: int, notes: str = "", **config: Any) -> dict[str, Any]:
    return {
        "id": "chains/diffusers/other",
        "peer": "diffusers",
        "config": {"num_train_timesteps": 100, "num_inference_steps": n, **config},
        "noise": {"seed": 3, "shape": SHAPE},
        "notes": notes,
        "outputs": {"final": {}, "intermediate": {"f64": "intermediate"}},
    }


@pytest.mark.parametrize(
    ("notes", "after"),
    [
        (
            "intermediate[j] is the sample after step (j+1)*10 (and after the last step)",
            [10, 20, 25],
        ),
        (
            "intermediate[j] is the sample after step (j+1)*5 (and after the last step)",
            [5, 10, 15, 20, 25],
        ),
    ],
)
def test_the_recorded_steps_are_those_of_the_notes(
    notes: str, after: list[int], tmp_path: Path
) -> None:
    save_pretrained(tmp_path, drawn(SMALL), GaussianDiffusion(NoiseSchedule.linear(100)))
    x_T = np.random.RandomState(1).standard_normal(SHAPE).astype(np.float32)
    inputs = {"model": {"path": str(tmp_path)}, "x_T": x_T}
    reference = np.zeros((len(after), *SHAPE))
    results = [
        chains.run(chain(tmp_path, 25, text), inputs, context(intermediate=reference))
        for text in (notes, notes.replace("*10", "*1").replace("*5", "*1"))
    ]
    assert results[0] is not None and results[1] is not None
    every_step = results[1]["intermediate"]
    assert len(every_step) == 25
    np.testing.assert_array_equal(results[0]["intermediate"], every_step[[k - 1 for k in after]])


def test_intermediate_t_names_the_recorded_steps(tmp_path: Path) -> None:
    save_pretrained(tmp_path, drawn(SMALL), GaussianDiffusion(NoiseSchedule.linear(100)))
    case = chain(tmp_path, 25)
    case["outputs"]["intermediate_t"] = {"exact": "t"}
    x_T = np.random.RandomState(1).standard_normal(SHAPE).astype(np.float32)
    inputs = {"model": {"path": str(tmp_path)}, "x_T": x_T}
    # 25 of 100, leading: 96, 92, ..., 0.
    found = chains.run(case, inputs, context(t=np.array([60, 0]), intermediate=np.zeros((2, 1))))
    everything = chain(tmp_path, 25, "after step (j+1)*1")
    whole = chains.run(everything, inputs, context(intermediate=np.zeros((25, 1))))
    assert found is not None and whole is not None
    np.testing.assert_array_equal(found["intermediate"], whole["intermediate"][[9, 24]])
    assert found["intermediate_t"].tolist() == [60, 0]


def test_recordings_that_nothing_describes_are_left_out(tmp_path: Path) -> None:
    save_pretrained(tmp_path, drawn(SMALL), GaussianDiffusion(NoiseSchedule.linear(100)))
    inputs = {"model": {"path": str(tmp_path)}, "x_T": np.zeros(SHAPE, np.float32)}
    result = chains.run(chain(tmp_path, 5), inputs, context(intermediate=np.zeros((2, 1))))
    assert result is not None and "intermediate" not in result and result["final"].shape == SHAPE


def test_class_labels_reach_the_network(tmp_path: Path) -> None:
    unet = drawn(UNetConfig(**{**SMALL.to_dict(), "num_class_embeds": 3}))
    save_pretrained(tmp_path, unet, GaussianDiffusion(NoiseSchedule.linear(100)))
    inputs = {"model": {"path": str(tmp_path)}, "x_T": np.zeros(SHAPE, np.float32)}
    finals = []
    for labels in ([0, 1], [0, 2]):
        given = inputs | {"class_labels": np.array(labels)}
        result = chains.run(chain(tmp_path, 2), given, context(intermediate=np.zeros((1, 1))))
        assert result is not None
        finals.append(result["final"])
    np.testing.assert_array_equal(finals[0][0], finals[1][0])
    assert not np.array_equal(finals[0][1], finals[1][1])


@pytest.mark.parametrize("variance", ["learned", "fixed_large_log"])
def test_what_diffusers_alone_computes_is_not_covered(variance: str, tmp_path: Path) -> None:
    save_pretrained(tmp_path, drawn(SMALL), GaussianDiffusion(NoiseSchedule.linear(100)))
    inputs = {"model": {"path": str(tmp_path)}, "x_T": np.zeros(SHAPE, np.float32)}
    case = chain(tmp_path, 5, variance_type=variance)
    assert chains.run(case, inputs, context(intermediate=np.zeros((5, 1)))) is None


# ---- training


def one_step(folder: Path, learns: bool, **config: Any) -> dict[str, np.ndarray]:
    """A training case of one step at T = 50, on images of zeros."""
    kwargs = OPENAI | {"out_channels": 6 if learns else 3}
    unet = drawn(unet_config(read_kwargs(kwargs, "kwargs")[0]))
    variance = "learned_range" if learns else "fixed_large"
    save_openai(folder, unet, GaussianDiffusion(NoiseSchedule.cosine(50), variance=variance))
    case = {
        "config": {
            "schedule": "linear",
            "T": 50,
            "mean": "EPSILON",
            "var": "FIXED_LARGE",
            "loss": "MSE",
            "lr": 1e-3,
            "clip_norm": 0.5,
            "ema": 0.9,
            "report": ["out.2.bias"],
            "steps": 1,
            **config,
        },
        "noise": {"seed": 5, "shape": SHAPE},
        "outputs": {name: {} for name in ("loss_per_sample", "param_after/out.2.bias")},
    }
    inputs = {
        "model": {"path": str(folder)},
        "x_start": np.full(SHAPE, 0.25, np.float32),
        "t": np.array([[3, 40]]),
    }
    result = train.run(case, inputs, context())
    assert result is not None
    return result


def expected_loss(folder: Path, target: str, rescale: bool) -> np.ndarray:
    """Mean squared error under OpenAI's linear schedule: ends scaled by 1000/T."""
    unet, _ = from_pretrained(folder)
    t = np.array([3, 40])
    alphas_cumprod = np.cumprod(1 - np.linspace(20 * 1e-4, 20 * 0.02, 50))[t][:, None, None, None]
    noise = np.random.RandomState(5).standard_normal(SHAPE).astype(np.float32)
    x_t = np.sqrt(alphas_cumprod) * 0.25 + np.sqrt(1 - alphas_cumprod) * noise
    seen = torch.tensor(t * 20.0, dtype=torch.float32) if rescale else torch.tensor(t)
    with torch.inference_mode():
        output = unet(torch.tensor(x_t, dtype=torch.float32), seen).numpy()[:, :3]
    wanted = noise if target == "EPSILON" else np.full(SHAPE, 0.25)
    return ((wanted - output) ** 2).mean((1, 2, 3))


@pytest.mark.parametrize("mean", ["EPSILON", "START_X"])
@pytest.mark.parametrize("rescale", [False, True])
def test_training_takes_the_peers_process(mean: str, rescale: bool, tmp_path: Path) -> None:
    result = one_step(tmp_path, False, mean=mean, rescale=rescale)
    expected = expected_loss(tmp_path, mean, rescale)
    np.testing.assert_allclose(result["loss_per_sample"][0], expected, rtol=2e-5)


def test_training_takes_the_peers_loss(tmp_path: Path) -> None:
    found = {
        loss: one_step(tmp_path / loss, True, var="LEARNED_RANGE", loss=loss)["loss_per_sample"][0]
        for loss in ("MSE", "RESCALED_MSE", "KL", "RESCALED_KL")
    }
    mse = expected_loss(tmp_path / "MSE", "EPSILON", False)
    # The bound's term whole, and times T/1000.
    bound = found["MSE"] - mse
    assert (bound > 1e-3).all()
    np.testing.assert_allclose(found["RESCALED_MSE"] - mse, bound * 0.05, rtol=1e-2, atol=1e-5)
    np.testing.assert_allclose(found["RESCALED_KL"], 50 * found["KL"], rtol=1e-5)
    np.testing.assert_allclose(found["KL"], bound, rtol=1e-3)
