"""Channel simulation: the law of what the receiver gets, and the length of what is sent."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from fastddpm.codec import channel
from fastddpm.codec.blocks import put_index
from fastddpm.codec.channel import Choice, Place, candidate, choose, divergence
from fastddpm.codec.entropy import Writer
from fastddpm.codec.index_code import EDGES, SIZES, bin_of, bin_probabilities
from fastddpm.codec.levels import LOWEST, block_count, highest, level_of, level_probabilities
from fastddpm.codec.rotation import Rotation

SIZE, BLOCKS = 6, 2000
# Of the tests of laws: one in a thousand fails by chance; the seeds are fixed.
LEVEL = 1e-3


def pair(bits: float, ratio: float) -> tuple[Tensor, Tensor]:
    """Δ in a direction of no axis, and r, with about so many bits of divergence."""
    direction = torch.linspace(1, 2, SIZE)
    nats = bits * math.log(2) - divergence(torch.zeros(SIZE), torch.full((SIZE,), ratio))
    shift = direction / direction.norm() * math.sqrt(2 * nats)
    return shift, torch.full((SIZE,), ratio)


def place(block: int) -> Place:
    return Place(seed=11, step=3, image=2, block=block)


@cache
def sent(bits: float, ratio: float = 1.0) -> tuple[list[Choice], Tensor, Tensor]:
    shift, r = pair(bits, ratio)
    choices = [choose(place(b), shift, r, tolerance=5e-3) for b in range(BLOCKS)]
    return choices, shift, r


def standardised(numbers: list[int], shift: Tensor, ratio: Tensor) -> tuple[Tensor, Tensor]:
    """What the receiver draws for these numbers, along Δ and across it, N(0, 1) if it is q's."""
    z = torch.stack([candidate(place(b), number, SIZE) for b, number in enumerate(numbers)])
    y = (z - shift) / ratio.sqrt()
    along = shift / shift.norm()
    across = torch.linspace(1, -1, SIZE) ** 3 + 0.1
    across = across - (across @ along) * along
    return y @ along, y @ (across / across.norm())


@pytest.mark.parametrize(("bits", "ratio"), [(1.0, 1.0), (3.0, 1.0), (2.5, 0.6)])
def test_the_receiver_gets_q(bits: float, ratio: float) -> None:
    choices, shift, r = sent(bits, ratio)
    for values in standardised([c.number for c in choices], shift, r):
        assert stats.kstest(values.numpy(), "norm").pvalue > LEVEL


@pytest.mark.parametrize("bits", [1.0, 3.0])
def test_the_next_candidate_is_not_qs(bits: float) -> None:
    """The same test fails where the receiver takes the wrong candidate."""
    choices, shift, r = sent(bits)
    along, _ = standardised([c.number + 1 for c in choices], shift, r)
    assert stats.kstest(along.numpy(), "norm").pvalue < LEVEL


def test_a_search_that_ends_early_is_not_qs() -> None:
    """And where the sender looks at too few candidates, which it says."""
    shift, r = pair(5.0, 1.0)
    choices = [choose(place(b), shift, r, tolerance=1e-3, most=32) for b in range(BLOCKS)]
    along, _ = standardised([c.number for c in choices], shift, r)
    assert stats.kstest(along.numpy(), "norm").pvalue < LEVEL
    assert np.mean([c.missed for c in choices]) > 0.05


@pytest.mark.parametrize("bits", [0.1, 1.0, 3.0])
def test_the_law_of_the_number(bits: float) -> None:
    """Chi-square of the bins against the law that codes them."""
    choices, _, _ = sent(bits)
    counts = np.bincount([bin_of(c.number) for c in choices], minlength=len(SIZES))
    expected = BLOCKS * bin_probabilities(bits)
    # Bins of less than five expected go together.
    rare = expected < 5
    observed = np.append(counts[~rare], counts[rare].sum())
    law = np.append(expected[~rare], expected[rare].sum())
    assert stats.chisquare(observed, law * observed.sum() / law.sum()).pvalue > LEVEL


@pytest.mark.parametrize("bits", [0.1, 1.0, 3.0])
def test_the_length_is_within_the_stated_bound(bits: float) -> None:
    choices, _, _ = sent(bits)
    writer = Writer()
    for choice in choices:
        put_index(writer, choice.number, 0, bits)
    mean = 8 * len(writer.content()) / BLOCKS
    assert bits < mean < bits + math.log2(bits + 1) + 4


def test_a_candidate_is_the_same_alone_and_among_others() -> None:
    many = place(5).draw(torch.arange(1, 100), SIZE)
    for k in (1, 7, 99):
        assert torch.equal(candidate(place(5), k, SIZE), many[k - 1])
    assert not torch.equal(candidate(place(5), 1, SIZE), candidate(place(6), 1, SIZE))


def test_identical_laws_take_the_first_candidate() -> None:
    assert choose(place(0), torch.zeros(3), torch.ones(3), 0.01) == Choice(1, 0.0)


def test_a_hopeless_search_ends() -> None:
    choice = choose(place(0), torch.full((2,), 30.0), torch.ones(2), 0.01, most=500)
    assert 1 <= choice.number <= 500 and choice.missed > 1


def test_bins_cover_all_numbers_once() -> None:
    assert EDGES[0] == 1 and EDGES[-1] == channel.MOST + 1 and (SIZES > 0).all()
    for index in (1, 2, 3, 4, 5, 6, 11, 12, channel.MOST):
        b = bin_of(index)
        assert EDGES[b] <= index < EDGES[b + 1]
    for bits in (1e-3, 1.0, 16.0):
        law = bin_probabilities(bits)
        assert (law > 0).all() and abs(law.sum() - 1) < 1e-12


@pytest.mark.parametrize("mixing", [True, False])
@pytest.mark.parametrize("n", [1, 2, 7, 784])
def test_rotation_is_orthogonal(n: int, mixing: bool) -> None:
    rotation = Rotation(3, n, mixing=mixing)
    columns = torch.stack([rotation.apply(row) for row in torch.eye(n)])
    torch.testing.assert_close(columns @ columns.T, torch.eye(n), atol=1e-5, rtol=0)
    v = torch.randn(n, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rotation.undo(rotation.apply(v)), v, atol=1e-5, rtol=0)


def test_rotation_spreads_what_lies_in_few_elements() -> None:
    spike = torch.zeros(784)
    spike[100:104] = 5.0
    halves = Rotation(0, 784, mixing=True).apply(spike).square().view(8, -1).sum(1)
    assert float(halves.max() / halves.mean()) < 1.6
    # A permutation alone does not.
    permuted = Rotation(0, 784, mixing=False).apply(spike).square().view(8, -1).sum(1)
    assert float(permuted.max() / permuted.mean()) >= 2


def test_levels() -> None:
    assert [block_count(level) for level in range(-1, 8)] == [1, 1, 2, 3, 4, 6, 8, 12, 16]
    top = highest(784, 1 << 16)
    assert block_count(top) <= 784 < block_count(top + 1)
    for bits in (0.0, 1e-6, 0.3, 5.9, 6.1, 20.0, 777.0):
        level = level_of(bits, 6.0, top)
        assert LOWEST <= level <= top
        assert bits <= block_count(level) * 6.0 * 1.15
    with pytest.raises(ValueError, match="give more steps"):
        level_of(1e5, 6.0, top)
    # Never more than 16 bits, whatever the target.
    for target in (14.0, 16.0):
        for bits in range(1, 800):
            assert bits <= 16 * block_count(level_of(bits, target, top))
    for expected in (-40.0, -3.125, 30.0):
        assert abs(level_probabilities(expected, top).sum() - 1) < 1e-12
