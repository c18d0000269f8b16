"""The codec: what comes back, from the whole file, its beginning and damaged ones."""

from __future__ import annotations

import dataclasses
import math
import sys
from typing import Any

import gaussian_data as data
import numpy as np
import pytest
import torch
from cli_runs import small_unet
from codec_files import (
    COUNT,
    STEPS,
    assert_sound,
    codec_of,
    decoded_once,
    encode,
    encoded_once,
    pictures,
)
from cpu_program.steps import needs_library
from scipy import stats
from torch import Tensor

import fastddpm
from fastddpm.codec import Codec, DamagedError, Decoded, Encoded
from fastddpm.codec.process import BATCH, cubic
from fastddpm.codec.sender import Sender
from fastddpm.sampler import from_uint8, to_uint8


@pytest.fixture
def file() -> Encoded:
    return encoded_once()


@pytest.fixture
def states() -> list[Decoded]:
    return decoded_once()


def with_variance(x: Tensor, t: Tensor) -> Tensor:
    """The best ε̂, and a variance that differs from element to element."""
    values = 0.4 * torch.linspace(-1, 1, x[0].numel()).view(x[0].shape).expand_as(x)
    return torch.cat([data.network(x, t), values], dim=1)


# ---- the whole file


@pytest.mark.parametrize("decoder", ["erf", "tanh"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
def test_all_images_come_back(variance: str, decoder: str) -> None:
    diffusion = dataclasses.replace(data.DIFFUSION, variance=variance)
    codec = codec_of(diffusion, with_variance if "learned" in variance else None)
    encoded = encode(codec, pictures(), decoder=decoder)
    decoded = codec.decode(encoded.data)
    assert torch.equal(decoded.images, pictures()) and bool(decoded.lossless.all())
    assert decoded.stage == decoded.stages == STEPS + 1


@pytest.mark.parametrize(
    "steps", [[500], [250, 999], [10, 25, 50, 80, 120, 180, 250, 340, 450, 600, 800], 24]
)
def test_chains(steps: Any) -> None:
    codec = codec_of()
    encoded = encode(codec, pictures(1), steps=steps)
    assert torch.equal(codec.decode(encoded.data).images, pictures(1))


def test_states_are_the_senders(
    monkeypatch: pytest.MonkeyPatch, file: Encoded, states: list[Decoded]
) -> None:
    """Bit for bit, at every stage."""
    sent: list[Tensor] = []
    state = Sender.state

    def spied(self: Sender, *arguments: Any) -> Tensor:
        sent.append(state(self, *arguments))
        return sent[-1]

    monkeypatch.setattr(Sender, "state", spied)
    again = encode(codec_of(), pictures())
    assert again.data == file.data
    stages = torch.stack(sent).view(STEPS, COUNT, *data.SHAPE)
    for stage, x in enumerate(stages):
        assert torch.equal(states[stage].x_t, x)
    assert torch.equal(stages[-1], again.x_t)


def test_images_do_not_depend_on_each_other(file: Encoded) -> None:
    codec = codec_of()
    alone = encode(codec, pictures()[:1])
    assert torch.equal(alone.x_t, file.x_t[:1])
    assert len(alone.data) < len(file.data)


def test_ideal_rate_is_the_bound(file: Encoded, states: list[Decoded]) -> None:
    """Row by row: ``prior_bpd`` and ``vb_term`` at the very states."""
    kept = data.DIFFUSION.schedule.timesteps[cubic(data.DIFFUSION.num_steps, STEPS)]
    diffusion = data.DIFFUSION.respace(kept)
    x_0, n = from_uint8(pictures()), math.prod(data.SHAPE)
    terms = [diffusion.prior_bpd(x_0)]
    for k in reversed(range(STEPS)):
        t, x_t = torch.full((COUNT,), k), states[STEPS - 1 - k].x_t
        output = data.network(x_t, diffusion.model_timesteps(t))
        terms.append(diffusion.vb_term(output, x_0, x_t, t, decoder="erf"))
    expected = torch.stack(terms).double() * n
    torch.testing.assert_close(file.ideal, expected, rtol=2e-5, atol=1e-4)


def test_bytes_are_what_the_parts_say(file: Encoded) -> None:
    assert sum(file.parts.values()) == pytest.approx(8 * len(file.data))
    # Header and checksum are 20 + 4 bytes here, and the coder rounds up by 5 at most.
    assert 8 * 20 <= file.parts["container"] <= 8 * 32
    stated = sum(b.information + math.log2(b.information + 1) + 4 for b in file.blocks)
    assert float(file.ideal[:-1].sum()) < file.parts["blocks"] < stated
    assert file.parts["pixels"] == pytest.approx(float(file.ideal[-1].sum()), rel=1e-3)


def test_the_last_state_has_the_law_of_q() -> None:
    """After all the steps: as if it were drawn from q(x_1 | x_0) at once."""
    images, count = pictures(12), 12
    encoded = encode(codec_of(), images)
    kept = data.DIFFUSION.schedule.timesteps[cubic(data.DIFFUSION.num_steps, STEPS)]
    mean, variance, _ = data.DIFFUSION.respace(kept).q_mean_variance(
        from_uint8(images), torch.zeros(count, dtype=torch.int64)
    )
    z = ((encoded.x_t - mean) / variance.sqrt()).flatten().numpy()
    assert stats.kstest(z, "norm").pvalue > 1e-3


def test_the_network_takes_few_images_at_once() -> None:
    """In the same batches on both sides, whose results may depend on them."""
    sizes: list[int] = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        sizes.append(len(x))
        return data.network(x, t)

    images = pictures(2 * BATCH + 5)
    codec = codec_of(model=network)
    encoded = encode(codec, images, steps=[100, 400], target=4.0)
    assert sizes == [BATCH, BATCH, 5] * 2
    sizes.clear()
    assert torch.equal(codec.decode(encoded.data).images, images)
    assert sizes == [BATCH, BATCH, 5] * 2


def test_seeds_differ() -> None:
    a, b = (encode(codec_of(), pictures(1), seed=seed) for seed in (0, 2**64 - 1))
    assert not torch.equal(a.x_t, b.x_t)
    assert torch.equal(codec_of().decode(b.data).images, pictures(1))


@needs_library
@pytest.mark.slow
def test_the_built_in_model() -> None:
    """Engine "cpu": images encoded together, with one thread, decode with two, and alone."""
    unet, diffusion = fastddpm.from_pretrained("mnist")
    images = to_uint8(fastddpm.Sampler(unet, diffusion, threads=1).sample(3, seed=5, steps=20))
    encoded = Codec(unet, diffusion, "cpu", threads=1).encode(images, 14, target=3.0)
    decoded = Codec(unet, diffusion, "cpu", threads=2).decode(encoded.data)
    assert torch.equal(decoded.images, images)
    assert torch.equal(decoded.x_t, encoded.x_t)
    # Another engine has other last bits: the same states to rounding, and no wrong pixels.
    other = Codec(unet, diffusion, "reference")
    near = other.decode(encoded.data, partial=True)
    torch.testing.assert_close(near.x_t, encoded.x_t, atol=1e-4, rtol=0)
    assert torch.equal(near.images[near.lossless], images[near.lossless])
    if not near.lossless.all():
        with pytest.raises(DamagedError, match="computes otherwise"):
            other.decode(encoded.data)
    alone = Codec(unet, diffusion, "cpu", threads=1).encode(images[1:2], 14, target=3.0)
    # Image 0 of its own file: other candidates than as image 1 of another.
    assert torch.equal(Codec(unet, diffusion).decode(alone.data).images, images[1:2])


# ---- its beginning


def test_every_beginning_decodes(file: Encoded, states: list[Decoded]) -> None:
    codec, last = codec_of(), 0
    for length in range(0, len(file.data), 2):
        try:
            decoded = codec.decode(file.data[:length], partial=True)
        except DamagedError:
            assert not last
            continue
        assert decoded.stage >= last
        last = decoded.stage
        assert_sound(decoded, states)
        assert decoded.checked >= STEPS if last >= STEPS else decoded.checked == last // 8 * 8
    # All but the last image or so is there before the last byte.
    assert last >= STEPS


def test_estimates_improve(states: list[Decoded]) -> None:
    errors = [(s.images.double() - pictures().double()).square().mean() for s in states]
    assert errors[-1] == 0
    assert errors[STEPS - 1] < errors[STEPS // 2] < errors[0]


def test_until(file: Encoded, states: list[Decoded]) -> None:
    codec = codec_of()
    for stage in (1, 4, STEPS):
        decoded = codec.decode(file.data, until=stage)
        assert decoded.stage == stage and not decoded.lossless.any()
        assert_sound(decoded, states)
    for stage in (0, STEPS + 2):
        with pytest.raises(ValueError, match=f"1 to {STEPS + 1}"):
            codec.decode(file.data, until=stage)


# ---- refusals


def test_another_model_or_diffusion(file: Encoded) -> None:
    other = dataclasses.replace(data.DIFFUSION, clip=1.0)
    with pytest.raises(ValueError, match="another diffusion"):
        codec_of(other).decode(file.data)
    with pytest.raises(ValueError, match="another model"):
        codec_of(model=torch.nn.Conv2d(3, 3, 1)).decode(file.data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder": "logistic"}, "erf or tanh"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"most": 1 << 22}, "candidates"),
        ({"target": 16.5}, "1 to 16 bits, in halves"),
        ({"target": 0.5}, "1 to 16 bits, in halves"),
        ({"target": 5.75}, "1 to 16 bits, in halves"),
        ({"target": math.nan}, "1 to 16 bits, in halves"),
        ({"most": 9.5}, "integer"),
        ({"seed": 1.5}, "integer"),
        ({"steps": 3.7}, "integer"),
        ({"steps": [0.2, 3.7, 10]}, "integer, got 0.2"),
        ({"steps": "ddim20"}, "ddim20"),
        ({"steps": 1001}, "steps"),
        ({"steps": [3, 3]}, "different"),
        ({"steps": [0, 1000]}, "0 to 999"),
        ({"steps": []}, "at least one"),
        ({"seed": -1}, "seed"),
        ({"steps": [0, 999], "target": 1.0}, "give more steps"),
    ],
)
def test_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode(codec_of(), pictures(1), **options)


def test_integers_of_numpy() -> None:
    assert encode(codec_of(), pictures(), steps=np.int64(STEPS)).data == encoded_once().data
    kept = np.array(cubic(1000, STEPS))
    listed = encode(codec_of(), pictures(), steps=kept)
    assert torch.equal(listed.x_t, encoded_once().x_t)


def test_what_is_no_picture_and_no_file(file: Encoded) -> None:
    with pytest.raises(ValueError, match=r"numpy\.ndarray"):
        encode(codec_of(), pictures(1).numpy())  # type: ignore[arg-type]
    path: Any = "images.ddp"
    for read in (codec_of().decode, codec_of().stages):
        with pytest.raises(ValueError, match=r"bytes, got builtins\.str"):
            read(path)
    for until in (2.5, "3"):
        with pytest.raises(ValueError, match="until as an integer"):
            codec_of().decode(file.data, until=until)  # type: ignore[arg-type]
    decoded = codec_of().decode(bytearray(file.data), until=np.int64(2))  # type: ignore[arg-type]
    assert decoded.stage == 2


def test_a_conditional_network_is_refused() -> None:
    with pytest.raises(ValueError, match="unconditional"):
        Codec(small_unet(num_class_embeds=3), data.DIFFUSION)


def test_no_images() -> None:
    with pytest.raises(ValueError, match="images"):
        encode(codec_of(), pictures(1)[:0])
    with pytest.raises(ValueError, match="uint8"):
        encode(codec_of(), pictures(1).float())


def test_nan_is_named() -> None:
    codec = codec_of(model=lambda x, t: x * math.nan)
    with pytest.raises(FloatingPointError, match="timestep"):
        encode(codec, pictures(1))


def test_without_constriction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "constriction", None)
    with pytest.raises(ImportError, match="pip install constriction"):
        codec_of()


def test_progress(file: Encoded) -> None:
    seen: list[tuple[int, int]] = []
    encode(codec_of(), pictures(), progress=lambda *moment: seen.append(moment))
    assert seen == [(i, COUNT * (STEPS + 1)) for i in range(1, COUNT * (STEPS + 1) + 1)]
    seen.clear()
    codec_of().decode(file.data, progress=lambda *moment: seen.append(moment))
    assert seen[-1] == (COUNT * (STEPS + 1),) * 2


def test_cubic() -> None:
    assert cubic(1000, 1) == [0] and cubic(5, 5) == [0, 1, 2, 3, 4]
    for steps in (2, 17, 40, 400, 1000):
        chosen = cubic(1000, steps)
        assert chosen[0] == 0 and chosen[-1] == 999 and (np.diff(chosen) > 0).all()
