"""Counter-based noise: known answers, accuracy, distribution, and independence of the batch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fastddpm import noise
from fastddpm.noise import Purpose, normal, philox4x32, timesteps_draw

# Random123's kat_vectors for philox4x32 with 10 rounds: counter, key, words.
KNOWN_ANSWERS = (
    ("00000000 " * 4, "00000000 " * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff " * 4, "ffffffff " * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
)


def hex_words(text: str) -> tuple[int, ...]:
    return tuple(int(word, 16) for word in text.split())


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_known_answers(counter: str, key: str, expected: str) -> None:
    words = philox4x32(tuple(torch.tensor([word]) for word in hex_words(counter)), hex_words(key))
    assert tuple(word.item() for word in words) == hex_words(expected)


def test_counter_layout() -> None:
    """Seed, step, purpose, element and sample index stand where the contract puts them."""
    seed, index, step = 0x0123456789ABCDEF, 0x00000005_89ABCDEF, 999
    words = philox4x32(
        tuple(
            torch.tensor([word])
            for word in (3, step | Purpose.FORWARD << 24, index & 0xFFFFFFFF, index >> 32)
        ),
        (0x89ABCDEF, 0x01234567),
    )
    u = [word.double().item() * 2.0**-32 + 2.0**-33 for word in words[::2]]
    turns = [
        (word.item() >> 30) + ((word.item() >> 6) & 0xFFFFFF) * 2.0**-24 - 0.5
        for word in words[1::2]
    ]
    expected = [
        math.sqrt(-2 * math.log(u[k])) * f(math.pi / 2 * turns[k])
        for k in (0, 1)
        for f in (math.cos, math.sin)
    ]
    z = normal(seed, torch.tensor([index]), step, (2, 3, 3), Purpose.FORWARD)
    assert z.flatten()[12:16].tolist() == pytest.approx(expected, abs=1e-6)


def edge_words() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    anywhere = torch.randint(0, 2**32, (1_000_000,), generator=generator)
    small = anywhere >> torch.randint(0, 32, anywhere.shape, generator=generator)
    corners = torch.arange(4096)
    return torch.cat([anywhere, small, corners, 2**32 - 1 - corners, 2**31 - 2048 + corners])


def test_conversion_rounds_to_nearest_even() -> None:
    words = edge_words()
    expected = words.numpy().astype(np.float64).astype(np.float32)
    assert np.array_equal(words.to(torch.float32).numpy(), expected)


def test_uniform_is_never_zero() -> None:
    u = noise._uniform(torch.tensor([0, 1, 2**32 - 1]))
    assert u.tolist() == [2.0**-33, 2.0**-32 + 2.0**-33, 1.0]


def test_square_root_is_correctly_rounded() -> None:
    """Over every mantissa and both parities of the exponent: all that a root can meet."""
    bits = np.arange(0x3F800000, 0x40800000, dtype=np.int32)
    x = bits.view(np.float32)
    assert np.array_equal(noise._square_root(torch.from_numpy(x)).numpy(), np.sqrt(x))


def test_accuracy_against_float64() -> None:
    words = edge_words()
    u = noise._uniform(words)
    exact = -2 * u.double().log()
    ratio = noise._minus_two_ln(u).double() / exact
    assert (ratio[exact > 0] - 1).abs().max() < 2e-7
    angle = (
        math.pi / 2 * ((words >> 30).double() + ((words >> 6) & 0xFFFFFF).double() * 2.0**-24 - 0.5)
    )
    cosine, sine = noise._cos_sin(words)
    assert (cosine - angle.cos()).abs().max() < 1e-7
    assert (sine - angle.sin()).abs().max() < 1e-7
    z = noise._box_muller(words, words.flip(0))
    radius, turned = exact.sqrt(), angle.flip(0)
    assert (z[0] - radius * turned.cos()).abs().max() < 1e-6
    assert (z[1] - radius * turned.sin()).abs().max() < 1e-6


DRAWS = {
    "elements": lambda: normal(0, torch.arange(2), 3, (3, 512, 512), Purpose.REVERSE),
    "samples": lambda: normal(1, torch.arange(2**19), 3, (3,), Purpose.INITIAL),
    "steps": lambda: torch.cat(
        [normal(2, torch.arange(16), t, (1, 8, 16), Purpose.REVERSE) for t in range(600)]
    ),
    "seeds": lambda: torch.cat(
        [normal(seed, torch.arange(64), 0, (64,), Purpose.INITIAL) for seed in range(300)]
    ),
}


@pytest.mark.parametrize("along", DRAWS)
def test_distribution(along: str) -> None:
    """Moments within five standard errors, and Kolmogorov-Smirnov, over >= 1e6 draws."""
    z = DRAWS[along]().flatten().double().numpy()
    n = len(z)
    assert n >= 1_000_000
    # The sampling variance of z^k is E z^2k - (E z^k)^2, with E z^2k = (2k - 1)!!
    for power, moment, second in ((1, 0, 1), (2, 1, 3), (3, 0, 15), (4, 3, 105), (6, 15, 10395)):
        error = math.sqrt((second - moment**2) / n)
        assert abs((z**power).mean() - moment) < 5 * error, power
    assert stats.kstest(z, "norm").pvalue > 1e-3
    assert stats.kstest(z[: n // 8], "norm").pvalue > 1e-3


def test_neighbours_are_uncorrelated() -> None:
    """Elements, samples, steps, purposes and seeds next to one another; also their squares."""
    n = 1 << 20
    one = torch.zeros(1, dtype=torch.int64)
    z = normal(11, one, 500, (n + 8,), Purpose.REVERSE)[0].double()
    base = z[:n]
    others = [z[lag : lag + n] for lag in range(1, 9)]
    for seed, index, step, purpose in (
        (11, 1, 500, Purpose.REVERSE),
        (11, 2**32, 500, Purpose.REVERSE),
        (11, 0, 501, Purpose.REVERSE),
        (11, 0, 500, Purpose.FORWARD),
        (12, 0, 500, Purpose.REVERSE),
        (11 + 2**32, 0, 500, Purpose.REVERSE),
    ):
        others.append(normal(seed, one + index, step, (n,), purpose)[0].double())
    for other in others:
        assert abs((base * other).mean()) < 5 / math.sqrt(n)
        assert abs(((base**2 - 1) * (other**2 - 1)).mean()) < 5 * 2 / math.sqrt(n)


def test_tails() -> None:
    """Counts beyond 3, 4 and 4.5 standard deviations are binomial."""
    z = normal(21, torch.arange(4), 9, (1 << 20,), Purpose.REVERSE).abs()
    for bound in (3.0, 4.0, 4.5):
        expected = z.numel() * 2 * stats.norm.sf(bound)
        assert abs((z > bound).sum().item() - expected) < 5 * math.sqrt(expected)


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 2**64 - 1),
    indices=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=5),
    step=st.integers(0, 2**24 - 1),
    shape=st.lists(st.integers(1, 5), max_size=3).map(tuple),
    purpose=st.sampled_from(Purpose),
)
def test_a_sample_is_the_same_in_every_batch(
    seed: int, indices: list[int], step: int, shape: tuple[int, ...], purpose: Purpose
) -> None:
    batch = normal(seed, torch.tensor(indices), step, shape, purpose)
    assert batch.shape == (len(indices), *shape) and batch.dtype == torch.float32
    assert batch.is_contiguous()
    backwards = normal(seed, torch.tensor(indices[::-1]), step, shape, purpose)
    assert torch.equal(batch, backwards.flip(0))
    for k, index in enumerate(indices):
        alone = normal(seed, torch.tensor([index]), torch.tensor([step]), shape, purpose)
        assert torch.equal(alone[0], batch[k])


def test_a_longer_sample_begins_with_a_shorter_one() -> None:
    indices = torch.arange(3)
    long = normal(5, indices, 7, (103,), Purpose.INITIAL)
    assert torch.equal(long[:, :45], normal(5, indices, 7, (3, 3, 5), Purpose.INITIAL).flatten(1))


def test_a_step_for_each_sample() -> None:
    indices, steps = torch.arange(4), torch.tensor([7, 0, 999, 7])
    together = normal(3, indices, steps, (2, 3), Purpose.FORWARD)
    for k in range(4):
        alone = normal(3, indices[k : k + 1], int(steps[k]), (2, 3), Purpose.FORWARD)
        assert torch.equal(together[k], alone[0])


@pytest.mark.parametrize("seed", [0, 2**32 + 5, 2**63 - 1, 2**63, 2**64 - 1])
def test_a_seed_may_be_a_tensor(seed: int) -> None:
    """Its 64 bits are those of the number, whose upper half a sign would fill."""
    held = noise.seed_tensor(seed)
    rest = (torch.tensor([0, 2**40]), 7, (2, 3), Purpose.REVERSE)
    assert torch.equal(normal(held, *rest), normal(seed, *rest))
    drawn = timesteps_draw(held, torch.arange(9), 0, 1000)
    assert torch.equal(drawn, timesteps_draw(seed, torch.arange(9), 0, 1000))


def test_empty() -> None:
    none = torch.arange(0)
    assert normal(0, none, 1, (3, 2, 2), Purpose.REVERSE).shape == (0, 3, 2, 2)
    assert normal(0, torch.arange(2), 1, (3, 0), Purpose.REVERSE).shape == (2, 3, 0)
    assert timesteps_draw(0, none, 0, 10).shape == (0,)


@pytest.mark.parametrize("num_timesteps", [1, 2, 7, 1000])
def test_timesteps_are_uniform(num_timesteps: int) -> None:
    t = timesteps_draw(3, torch.arange(200_000), 17, num_timesteps)
    assert t.dtype == torch.int64 and t.min() >= 0 and t.max() < num_timesteps
    counts = torch.bincount(t, minlength=num_timesteps).numpy()
    assert num_timesteps == 1 or stats.chisquare(counts).pvalue > 1e-3
    assert torch.equal(t[100:110], timesteps_draw(3, torch.arange(100, 110), 17, num_timesteps))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": -1}, "seed: expected 0 to 2"),
        ({"seed": 2**64}, "seed: expected 0 to 2"),
        ({"seed": 1.5}, "seed: expected an integer, got 1.5"),
        ({"seed": None}, "seed: expected an integer, got None"),
        ({"seed": torch.tensor([1.0])}, r"seed: expected int64 \[1\], got torch.float32 \[1\]"),
        ({"seed": torch.tensor(1)}, r"seed: expected int64 \[1\], got torch.int64 \[\]"),
        ({"step": 1.5}, "step: expected an integer, got 1.5"),
        ({"step": -1}, "step: expected 0 to 16777215, got -1"),
        ({"step": 2**24}, "step: expected 0 to 16777215, got 16777216"),
        ({"step": torch.tensor([1.0])}, "step: expected int64"),
        ({"step": torch.arange(3)}, r"step: expected int64 \[1\] or \[2\]"),
        ({"purpose": 256}, "purpose: expected 0 to 255, got 256"),
        ({"indices": torch.zeros(2)}, "indices: expected int64"),
        ({"indices": torch.zeros(2, 1, dtype=torch.int64)}, "indices: expected int64"),
        ({"shape": (3, -1)}, "shape: expected sizes"),
        ({"shape": (2**20, 2**15)}, "shape: expected sizes"),
    ],
)
def test_mistakes_are_named(change: dict[str, object], message: str) -> None:
    call = {"seed": 0, "indices": torch.arange(2), "step": 1, "shape": (3,), "purpose": 1}
    with pytest.raises(ValueError, match=message):
        normal(**(call | change))


def test_timesteps_draw_refuses_an_empty_range() -> None:
    with pytest.raises(ValueError, match="num_timesteps: expected 1 to"):
        timesteps_draw(0, torch.arange(2), 0, 0)


@pytest.mark.usefixtures("other_default_dtype")
def test_the_default_dtype_changes_nothing() -> None:
    z = normal(5, torch.arange(3), 7, (2, 3), Purpose.FORWARD)
    assert z.dtype == torch.float32
    torch.set_default_dtype(torch.float32)
    assert torch.equal(z, normal(5, torch.arange(3), 7, (2, 3), Purpose.FORWARD))
