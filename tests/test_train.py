"""Training: one step, and whole runs that are stopped, killed and resumed."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fastddpm.checkpoint import from_pretrained
from fastddpm.diffusion import GaussianDiffusion
from fastddpm.noise import Purpose, normal, timesteps_draw
from fastddpm.schedule import NoiseSchedule
from fastddpm.train import Progress, TrainConfig, Trainer, train
from fastddpm.train.ema import ExponentialMovingAverage
from fastddpm.train.loss import HELD_OUT, draw_batch, held_out_batch, losses
from fastddpm.train.optimizer import learning_rate
from fastddpm.train.settings import to_toml
from fastddpm.train.state import checkpoints, read_checkpoint, write_checkpoint
from fastddpm.unet import UNetConfig

TINY = UNetConfig(
    in_channels=1,
    out_channels=1,
    block_out_channels=(8, 8),
    down_block_types=("DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D"),
    layers_per_block=1,
    norm_num_groups=4,
    attention_head_dim=None,
    dropout=0.2,
)
RUN = "import sys; from fastddpm.cli import main; main()"


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    """A run of twelve short steps on thirty random 8x8 images, everything random switched on."""
    draws = np.random.default_rng(0)
    pixels = draws.integers(0, 256, (30, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=pixels, labels=draws.integers(0, 3, 30))
    return TrainConfig(
        data=str(tmp_path / "data.npz"),
        out=str(tmp_path / "run"),
        unet=replace(TINY, num_class_embeds=4),
        flip=True,
        label_dropout=0.3,
        validation_images=5,
        validate_every=5,
        timesteps=20,
        steps=12,
        batch_size=7,
        warmup_steps=4,
        learning_rate=1e-3,
        lr_schedule="cosine",
        log_every=3,
        checkpoint_every=4,
        threads=1,
    )


def _state(config: TrainConfig, step: int) -> dict[str, Tensor]:
    return load_file(Path(config.out) / "checkpoints" / f"step-{step:08d}.safetensors")


def _log(config: TrainConfig) -> list[dict[str, Any]]:
    """The records without what a clock tells."""
    lines = (Path(config.out) / "log.jsonl").read_text().splitlines()
    clock = ("images_per_second", "elapsed_seconds")
    return [{k: v for k, v in json.loads(line).items() if k not in clock} for line in lines]


def _assert_same_run(one: TrainConfig, other: TrainConfig) -> None:
    a, b = _state(one, one.steps), _state(other, one.steps)
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name
    assert _log(one) == _log(other)
    weights = "model/diffusion_pytorch_model.safetensors"
    assert (Path(one.out) / weights).read_bytes() == (Path(other.out) / weights).read_bytes()


# ---- one step


def test_draws_are_the_noise_specification() -> None:
    x_0 = torch.zeros(5, 1, 4, 4)
    batch = draw_batch(7, 1000, x_0, None, GaussianDiffusion(NoiseSchedule.linear(50)))
    indices = torch.arange(1000, 1005)
    assert torch.equal(batch.noise, normal(7, indices, 0, (1, 4, 4), Purpose.FORWARD))
    assert torch.equal(batch.t, timesteps_draw(7, indices, 0, 50))


def test_held_out_draws_are_spread_and_apart_from_training() -> None:
    x_0 = torch.zeros(10, 1, 2, 2)
    diffusion = GaussianDiffusion(NoiseSchedule.linear(100))
    whole = held_out_batch(7, 0, 10, x_0, None, diffusion)
    assert whole.t.tolist() == list(range(5, 100, 10))
    part = held_out_batch(7, 4, 10, x_0[:3], None, diffusion)
    assert torch.equal(part.noise, whole.noise[4:7])
    expected = normal(7, HELD_OUT + torch.arange(10), 0, (1, 2, 2), Purpose.FORWARD)
    assert torch.equal(whole.noise, expected)


def test_loss_is_the_mean_squared_error_of_the_noise() -> None:
    diffusion = GaussianDiffusion(NoiseSchedule.linear(10))
    batch = draw_batch(0, 0, torch.randn(6, 1, 4, 4), None, diffusion)
    loss = losses(lambda x, t, labels: 0.5 * x, diffusion, batch, "simple")
    x_t = diffusion.q_sample(batch.x_0, batch.t, batch.noise)
    expected = (0.5 * x_t.double() - batch.noise.double()).square().mean((1, 2, 3))
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_x_t_is_made_with_the_noise_in_one_call(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One fused call, whose x_t and noise are bit for bit those of the two steps apart."""
    diffusion = GaussianDiffusion(NoiseSchedule.cosine(20))
    x_0 = torch.randn(5, 3, 4, 4)
    batch = draw_batch(2**63 + 7, 64, x_0, None, diffusion, backend)
    expected = draw_batch(2**63 + 7, 64, x_0, None, diffusion, "reference")
    assert batch.x_t is not None and torch.equal(batch.noise, expected.noise)
    assert torch.equal(batch.x_t, diffusion.q_sample(x_0, batch.t, batch.noise))
    seen: list[torch.Tensor] = []

    def network(x_t: torch.Tensor, t: torch.Tensor, labels: None) -> torch.Tensor:
        seen.append(x_t)
        return x_t

    monkeypatch.setattr(GaussianDiffusion, "q_sample", None)
    parts = [losses(network, diffusion, part, "simple") for part in batch.split(2)]
    assert torch.cat(parts).shape == (5,) and torch.equal(torch.cat(seen), batch.x_t)


@pytest.mark.parametrize("accumulate", [2, 3, 7])
def test_micro_batches_equal_the_whole_batch(config: TrainConfig, accumulate: int) -> None:
    # Dropout draws its masks in another order; without it only rounding is left.
    config = replace(config, unet=replace(config.unet, dropout=0.0))
    whole, parts = Trainer(config), Trainer(replace(config, accumulate=accumulate))
    for _ in range(3):
        whole.step()
        parts.step()
    assert torch.allclose(whole.meter.totals, parts.meter.totals, rtol=1e-5)
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        # Adam divides by the gradient's size: where that is rounding, so is the step's sign.
        assert (a - b).abs().max() < 1e-4


def test_the_first_step_against_plain_torch(config: TrainConfig) -> None:
    config = replace(config, clip_norm=0.1, ema_decay=0.9, ema_warmup=False)
    trainer, twin = Trainer(config), Trainer(config)
    batch = twin._next_batch()
    torch.manual_seed(5)
    loss = losses(twin.model, twin.diffusion, batch, "simple").mean()
    gradients = torch.autograd.grad(loss, list(twin.model.parameters()))
    torch.manual_seed(5)
    trainer.step()
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
    mean_loss, mean_norm = list(trainer.meter.take().values())
    assert mean_loss == pytest.approx(loss.item(), rel=1e-6)
    assert mean_norm == pytest.approx(norm, rel=1e-5)
    rate = config.learning_rate / config.warmup_steps
    rows = zip(
        twin.model.parameters(),
        trainer.model.parameters(),
        trainer.averaged.parameters(),
        gradients,
        strict=True,
    )
    for before, after, averaged, gradient in rows:
        g = gradient.double() * min(1.0, 0.1 / norm)
        # The first step of Adam: both moments are bias-corrected to g and g².
        expected = before.double() - rate * g / (g.abs() + config.eps)
        large = g.abs() > 1e-5
        torch.testing.assert_close(after.double()[large], expected[large], rtol=0, atol=1e-6)
        moved = 0.9 * before.double() + 0.1 * after.double()
        torch.testing.assert_close(averaged.double(), moved, rtol=0, atol=1e-6)


def test_learning_rate() -> None:
    config = TrainConfig(data="x", steps=110, warmup_steps=10, learning_rate=2.0)
    cosine = replace(config, lr_schedule="cosine")
    assert [learning_rate(config, k) for k in (0, 4, 9, 10, 109)] == [0.2, 1.0, 2.0, 2.0, 2.0]
    found = [learning_rate(cosine, k) for k in (0, 9, 10, 60, 110)]
    assert found == pytest.approx([0.2, 2.0, 2.0, 1.0, 0.0])
    assert learning_rate(replace(config, warmup_steps=0), 0) == 2.0


def test_moving_average_of_parameters_not_buffers() -> None:
    model = nn.BatchNorm1d(3)
    ema = ExponentialMovingAverage(model, 0.75)
    with torch.no_grad():
        model.weight.fill_(5.0)
        model.running_mean.fill_(2.0)
    ema.update(model, 0)
    assert torch.equal(ema.model.weight, torch.full((3,), 2.0))
    assert torch.equal(ema.model.running_mean, torch.full((3,), 2.0))
    assert not ema.model.training and not any(p.requires_grad for p in ema.model.parameters())


def test_moving_average_warm_up() -> None:
    ema = ExponentialMovingAverage(nn.Linear(1, 1), 0.9, warmup=True)
    assert [ema.decay_at(k) for k in (0, 1, 1000)] == [0.1, 2 / 11, 0.9]
    with pytest.raises(ValueError, match="decay: expected 0 to 1"):
        ExponentialMovingAverage(nn.Linear(1, 1), 1.5)


def test_loss_falls_on_one_image(tmp_path: Path, config: TrainConfig) -> None:
    np.savez(tmp_path / "one.npz", images=np.full((1, 8, 8, 1), 255, np.uint8))
    trainer = Trainer(
        TrainConfig(
            data=str(tmp_path / "one.npz"),
            unet=replace(TINY, dropout=0.0),
            timesteps=20,
            batch_size=16,
            warmup_steps=0,
            learning_rate=3e-3,
        )
    )
    means = []
    for _ in range(4):
        for _ in range(12):
            trainer.step()
        means.append(trainer.meter.take()["loss"])
    # A fresh network answers 0, whose error is 1.
    assert means[-1] < 0.5 * means[0] < 0.6


@pytest.mark.parametrize("changes", [{"precision": "bfloat16"}, {"channels_last": True}])
def test_precision_and_layout_are_close(config: TrainConfig, changes: dict[str, Any]) -> None:
    config = replace(config, unet=replace(config.unet, dropout=0.0))
    plain, other = Trainer(config), Trainer(replace(config, **changes))
    for _ in range(3):
        plain.step()
        other.step()
    a, b = plain.meter.take(), other.meter.take()
    assert a["loss"] == pytest.approx(b["loss"], rel=2e-2)
    assert {p.dtype for p in other.model.parameters()} == {torch.float32}
    # Reduced precision must do something: the same bits would mean that it was not used.
    assert changes.get("channels_last") or a["loss"] != b["loss"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unet": replace(TINY, in_channels=3, out_channels=3)}, "in_channels: expected 1"),
        ({"unet": replace(TINY, sample_size=16)}, "sample_size: expected the images' 8x8"),
        (
            {"unet": replace(TINY, num_class_embeds=3), "label_dropout": 0.1},
            "num_class_embeds: expected at least 4",
        ),
        ({"device": "abacus"}, "device: expected auto"),
        pytest.param(
            {"device": "cuda"},
            "sees no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one here"),
        ),
        ({"schedule": "lineal"}, "expected a schedule in"),
        ({"schedule": "jsd"}, "cannot be sampled.*prediction"),
        ({"prediction": "previous_sample", "loss": "min_snr"}, "expected epsilon, sample or v_"),
    ],
)
def test_data_and_settings_must_fit(
    config: TrainConfig, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Trainer(replace(config, **({"label_dropout": 0.0} | changes)))


@pytest.mark.parametrize(
    ("labels", "dropout", "message"),
    [
        ([0, -1, 2], 0.0, "labels of 0 or more, got -1"),
        ([0, 4, 2], 0.0, "num_class_embeds: expected at least 5"),
        ([0, 3, 2], 0.1, "num_class_embeds: expected at least 5"),
    ],
)
def test_labels_must_fit_the_classes(
    config: TrainConfig, labels: list[int], dropout: float, message: str
) -> None:
    images = np.zeros((3, 8, 8, 1), np.uint8)
    np.savez(config.data, images=images, labels=np.array(labels))
    with pytest.raises(ValueError, match=message):
        Trainer(replace(config, label_dropout=dropout, validation_images=0, validate_every=0))


def test_a_schedule_that_ends_without_signal_needs_another_prediction(config: TrainConfig) -> None:
    trainer = Trainer(replace(config, schedule="jsd", prediction="v_prediction"))
    trainer.step()
    assert trainer.meter.take()["loss"] > 0


@pytest.mark.parametrize("seed", [2**63, 2**64 - 1])
def test_every_seed_of_64_bits_trains(config: TrainConfig, seed: int) -> None:
    one, other = (Trainer(replace(config, seed=s)) for s in (seed, seed - 1))
    for trainer in (one, other):
        trainer.step()
    assert math.isfinite(one.validation_loss())
    assert not torch.equal(one.model.conv_in.weight, other.model.conv_in.weight)


def test_hybrid_with_a_fixed_variance_is_simple(config: TrainConfig) -> None:
    trainers = [Trainer(replace(config, loss=loss)) for loss in ("simple", "hybrid")]
    for trainer in trainers:
        trainer.step()
    assert torch.equal(trainers[0].meter.totals, trainers[1].meter.totals)


# ---- whole runs


def test_a_run_leaves_everything(config: TrainConfig) -> None:
    config = replace(config, sample_every=12, sample_steps=5, sample_count=4)
    before = torch.get_rng_state()
    seen: list[Progress] = []
    outcome = train(config, seen.append)
    out = Path(config.out)
    assert (outcome.step, outcome.reason) == (12, "finished")
    assert [p.name for p in checkpoints(out / "checkpoints")] == [
        "step-00000008.safetensors",
        "step-00000012.safetensors",
    ]
    assert [r["step"] for r in _log(config)] == [3, 5, 6, 9, 10, 12]
    assert [p.step for p in seen] == list(range(1, 13))
    assert (out / "samples" / "step-00000012.png").exists()
    assert (out / "config.toml").read_text() == to_toml(config)
    unet, diffusion = from_pretrained(out / "model")
    state = _state(config, 12)
    for name, tensor in unet.state_dict().items():
        assert torch.equal(tensor, state[f"ema/{name}"])
    assert diffusion.num_steps == 20
    assert unet.config.sample_size == 8
    assert torch.equal(torch.get_rng_state(), before)
    # Once finished, the same call changes nothing.
    assert train(config).step == 12
    assert _state(config, 12).keys() == state.keys()


@pytest.mark.parametrize("stop_after", [1, 4, 6, 11])
def test_a_stopped_and_resumed_run_equals_a_whole_one(
    config: TrainConfig, tmp_path: Path, stop_after: int
) -> None:
    train(config)
    twin = replace(config, out=str(tmp_path / "twin"))

    def stop(progress: Progress) -> None:
        if progress.step == stop_after:
            os.kill(os.getpid(), signal.SIGINT)

    outcome = train(twin, stop)
    assert (outcome.step, outcome.reason, outcome.model) == (stop_after, "interrupted", None)
    train(twin)
    _assert_same_run(config, twin)


@pytest.mark.slow
def test_a_killed_run_equals_a_whole_one(config: TrainConfig, tmp_path: Path) -> None:
    config = replace(config, steps=120, checkpoint_every=5, lr_schedule="constant")
    twin = replace(config, out=str(tmp_path / "twin"))
    path = tmp_path / "twin.toml"
    path.write_text(to_toml(twin), encoding="utf-8")
    log = Path(twin.out) / "log.jsonl"
    # Each time a little further, and at no particular moment of a step.
    for records, delay in ((2, 0.0), (25, 0.013)):
        process = subprocess.Popen([sys.executable, "-c", RUN, "train", str(path)])
        deadline = time.monotonic() + 120
        while not (log.exists() and log.read_text().count("\n") >= records):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(delay)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    finished = subprocess.run([sys.executable, "-c", RUN, "train", str(path)], check=False)
    assert finished.returncode == 0
    train(config)
    _assert_same_run(config, twin)


def test_time_limit_saves_and_exports(config: TrainConfig) -> None:
    outcome = train(replace(config, max_minutes=1e-9))
    assert (outcome.step, outcome.reason) == (1, "time limit")
    assert outcome.model is not None and outcome.model.exists()
    assert train(config).step == 12


def test_a_thread_other_than_the_main_one_can_train(config: TrainConfig) -> None:
    outcomes: list[Any] = []
    thread = threading.Thread(target=lambda: outcomes.append(train(config)))
    thread.start()
    thread.join()
    assert outcomes[0].reason == "finished"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 5, "learning_rate": 1e-4}, "checkpoint in .*: batch_size, learning_rate "),
        ({"steps": 20}, ": steps "),
        ({"unet": replace(TINY, num_class_embeds=4, dropout=0.3)}, r": unet\.dropout "),
    ],
)
def test_a_resume_with_other_settings_is_refused(
    config: TrainConfig, changes: dict[str, Any], message: str
) -> None:
    train(replace(config, max_minutes=1e-9))
    before = (Path(config.out) / "config.toml").read_bytes()
    with pytest.raises(ValueError, match=message):
        train(replace(config, **changes))
    assert (Path(config.out) / "config.toml").read_bytes() == before


def test_a_resume_may_change_what_does_not_matter(config: TrainConfig) -> None:
    constant = replace(config, lr_schedule="constant")
    train(replace(constant, max_minutes=1e-9))
    assert train(replace(constant, steps=14, log_every=1, keep_checkpoints=5)).step == 14


def test_a_resume_with_other_data_is_refused(config: TrainConfig) -> None:
    train(replace(config, max_minutes=1e-9))
    with np.load(config.data) as old:
        images, labels = old["images"].copy(), old["labels"]
    images[3, 2, 1] ^= 1
    np.savez(config.data, images=images, labels=labels)
    with pytest.raises(ValueError, match="are not those of the checkpoint"):
        train(config)


def test_a_loss_that_is_not_finite_is_named(config: TrainConfig) -> None:
    config = replace(config, lr_schedule="constant", steps=40, log_every=1)
    train(replace(config, steps=4))
    broken = replace(config, steps=40)
    poisoned: list[int] = []

    def poison(progress: Progress) -> None:
        poisoned.append(progress.step)

    path = checkpoints(Path(config.out) / "checkpoints")[-1]
    tensors, record = read_checkpoint(path)
    tensors["model/conv_in.bias"][0] = float("nan")
    record.pop("format")
    write_checkpoint(path, tensors, record)
    whole = path.read_bytes()
    with pytest.raises(FloatingPointError, match="step 5: the loss or its gradient is not finite"):
        train(broken, poison)
    assert path.read_bytes() == whole
    assert checkpoints(path.parent)[-1] == path


def test_a_full_disk_leaves_the_last_checkpoint(config: TrainConfig, tmp_path: Path) -> None:
    train(replace(config, max_minutes=1e-9))
    path = tmp_path / "run.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    folder = Path(config.out) / "checkpoints"
    (first,) = checkpoints(folder)
    whole = first.read_bytes()

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) // 2, len(whole) // 2))

    process = subprocess.run(
        [sys.executable, "-c", RUN, "train", str(path)],
        preexec_fn=limit,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 1
    assert "Traceback" not in process.stderr
    assert str(folder) in process.stderr.splitlines()[-1]
    assert first.read_bytes() == whole
    assert list(folder.iterdir()) == [first]
    assert train(config).step == 12


@pytest.mark.parametrize("cut", [0.1, 0.9])
def test_a_truncated_checkpoint_is_refused(config: TrainConfig, cut: float) -> None:
    train(replace(config, max_minutes=1e-9))
    (path,) = checkpoints(Path(config.out) / "checkpoints")
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * cut)])
    with pytest.raises(ValueError, match="truncated or damaged checkpoint"):
        train(config)


def test_the_log_drops_what_lies_beyond_the_checkpoint(config: TrainConfig) -> None:
    train(replace(config, max_minutes=1e-9))
    log = Path(config.out) / "log.jsonl"
    log.write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "lo')
    train(config)
    assert [r["step"] for r in _log(config)] == [1, 3, 5, 6, 9, 10, 12]


def test_tensorboard_by_request(config: TrainConfig) -> None:
    pytest.importorskip("tensorboard")
    train(replace(config, tensorboard=True))
    assert list((Path(config.out) / "tensorboard").iterdir())
