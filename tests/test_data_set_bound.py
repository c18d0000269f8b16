"""The bound over a data set: each image once, moments and not terms, memory that stays."""

from __future__ import annotations

import csv
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_runs import small_unet
from hypothesis import given
from hypothesis import strategies as st
from test_likelihood import SCHEDULE, SHAPE, images, network
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastddpm import GaussianDiffusion, NoiseSchedule
from fastddpm.evaluation import (
    Bound,
    DataSetBound,
    RateDistortion,
    bits_per_dim,
    bound_of_data,
    rate_distortion,
)
from fastddpm.evaluation.data_set import bounds_of_parts, merged, parts_of
from fastddpm.evaluation.moments import Moments
from fastddpm.evaluation.pairs import all_pairs, drawn_pairs, images_for_curve, strata

DIFFUSION = GaussianDiffusion(SCHEDULE)


def bound() -> Bound:
    return Bound(network(), DIFFUSION, batch_size=20)


# ---- moments


@pytest.mark.parametrize("offset", [0.0, 1e8])
def test_moments_of_parts_are_those_of_the_whole(offset: float) -> None:
    torch.manual_seed(0)
    values = torch.randn(100, 3, dtype=torch.float64) + offset
    parts = [Moments.of(part) for part in values.split([1, 40, 0, 59])]
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.merged(part)
    torch.testing.assert_close(whole.mean, values.mean(0), rtol=1e-14, atol=1e-15)
    variance = whole.squares / (whole.n - 1)
    torch.testing.assert_close(variance, values.var(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(whole.interval(), 1.959964 * (values.var(0) / 100).sqrt())


def test_moments_leave_out_what_is_missing() -> None:
    values = torch.tensor([[1.0, torch.nan, torch.nan], [3.0, 5.0, torch.nan]])
    found = Moments.of(values[:1]).merged(Moments.of(values[1:]))
    assert found.n.tolist() == [2, 1, 0]
    assert found.mean[:2].tolist() == [2, 5]
    assert found.known().isnan().tolist() == [False, False, True]
    assert found.interval().isnan().tolist() == [False, True, True]


# ---- the pairs of an estimate


@given(st.integers(2, 300), st.integers(1, 299))
def test_strata_hold_every_timestep_once(num_steps: int, draws: int) -> None:
    if draws > num_steps - 1:
        return
    begin, size = strata(num_steps, draws)
    held = torch.cat([torch.arange(b, b + n) for b, n in zip(begin, size, strict=True)])
    assert held.tolist() == list(range(1, num_steps))
    assert size.min() >= 1 and len(size) == draws


def test_draws_are_uniform_in_their_strata() -> None:
    num_steps, draws, count = 30, 3, 20_000
    pairs = drawn_pairs(7, torch.arange(count), num_steps, draws)
    begin, size = strata(num_steps, draws)
    times = torch.bincount(pairs.t, minlength=num_steps)
    assert times[0] == count
    for b, n in zip(begin.tolist(), size.tolist(), strict=True):
        expected = count / n
        chi_square = float(((times[b : b + n] - expected) ** 2 / expected).sum())
        # Mean n - 1, deviation √(2(n - 1)).
        assert chi_square <= n - 1 + 5 * (2 * (n - 1)) ** 0.5
    of_stratum = torch.bucketize(pairs.t, begin, right=True) - 1
    expected_weight = torch.where(pairs.t == 0, 1, size[of_stratum.clamp(min=0)])
    assert torch.equal(pairs.weight, expected_weight.double())
    assert (pairs.t.diff() <= 0).all()


def test_pairs_are_all_there() -> None:
    pairs = all_pairs(3, 4)
    found = set(zip(pairs.image.tolist(), pairs.t.tolist(), strict=True))
    assert found == {(i, t) for i in range(3) for t in range(4)} and len(pairs.t) == 12


def test_a_curve_takes_images_enough_to_draw_every_timestep() -> None:
    count = images_for_curve(50, 5)
    for seed in range(20):
        pairs = drawn_pairs(seed, torch.arange(count), 50, 5)
        assert len(pairs.t.unique()) == 50


# ---- a data set


@pytest.mark.parametrize("timesteps", [None, 3])
def test_the_parts_do_not_show(timesteps: int | None) -> None:
    x_0 = images(10)
    bits = bits_per_dim(network(), DIFFUSION, x_0, 2, timesteps=timesteps)
    whole = DataSetBound.of(bits)
    parts = [range(0, 3), range(3, 4), range(4, 10)]
    found = bounds_of_parts(bound(), x_0, 2, parts=parts, timesteps=timesteps)
    again = merged(part for _, part in found)
    assert again.images == 10
    for name, values in whole.arrays().items():
        torch.testing.assert_close(
            torch.from_numpy(again.arrays()[name]), torch.from_numpy(values), rtol=1e-9, atol=1e-12
        )
    assert whole.bits_per_dim == pytest.approx(float(bits.total.mean()))
    assert whole.interval == pytest.approx(1.959964 * float(bits.total.std()) / 10**0.5)


def test_arrays_there_and_back() -> None:
    found = bound_of_data(bound(), images(4))
    again = DataSetBound.from_arrays(found.arrays())
    assert again.arrays().keys() == found.arrays().keys()
    assert (again.bits_per_dim, again.interval) == (found.bits_per_dim, found.interval)


def test_parts_cover_each_image_once() -> None:
    assert [list(part) for part in parts_of(5, 2)] == [[0, 1], [2, 3], [4]]
    assert parts_of(0) == []
    with pytest.raises(ValueError, match="at least one image"):
        bound_of_data(bound(), images()[:0])


def test_terms_done_are_told() -> None:
    seen: list[int] = []
    bound_of_data(bound(), images(5), advance=seen.append)
    assert sum(seen) == 45 and min(seen) > 0


def test_labels_of_a_data_set() -> None:
    conditional = Bound(small_unet(num_class_embeds=3), GaussianDiffusion(NoiseSchedule.linear(2)))
    x_0 = torch.zeros(70, 1, 8, 8)
    one, each = (bound_of_data(conditional, x_0, labels=v) for v in (1, torch.ones(70).long()))
    assert one.bits_per_dim == each.bits_per_dim
    seen: list[int] = []
    for labels in ([1] * 69, torch.ones(71).long(), 3):
        with pytest.raises(ValueError, match="labels must"):
            bound_of_data(conditional, x_0, labels=labels, advance=seen.append)
    assert not seen


def test_images_lie_in_their_range_without_a_clip() -> None:
    free = GaussianDiffusion(SCHEDULE, clip=None)
    levels = (images(2) + 1) * 127.5
    for wrong in (levels, torch.full_like(levels, torch.nan)):
        with pytest.raises(ValueError, match=r"images must lie in \[-1, 1\]"):
            bits_per_dim(network(), free, wrong)
    assert bits_per_dim(network(), free, levels / 127.5 - 1).total.isfinite().all()


# ---- memory


class LiveBytes(TorchDispatchMode):
    """The most bytes that tensors made inside held at once; views of ``given`` hold none."""

    def __init__(self, given: Tensor) -> None:
        super().__init__()
        self.live = self.most = 0
        self._known = {given.untyped_storage()._cdata}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.most = max(self.most, self.live)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def live_bytes(measure: Any, count: int) -> int:
    """The most that it takes for so many images, beside them."""
    x_0 = torch.zeros(count, *SHAPE, dtype=torch.uint8)
    measure(x_0[:64])
    with LiveBytes(x_0) as counted:
        measure(x_0)
    return counted.most


def test_memory_does_not_grow_with_the_images() -> None:
    few, many = (live_bytes(lambda x: bound_of_data(bound(), x), n) for n in (128, 1024))
    assert 0 < many <= 1.01 * few
    # Terms of every image do grow: the count can tell.
    terms = [live_bytes(lambda x: bits_per_dim(network(), DIFFUSION, x), n) for n in (128, 1024)]
    assert terms[1] > 4 * terms[0]


# ---- rate and distortion


def test_the_curve_is_the_sums_of_the_terms() -> None:
    x_0 = images(6)
    bits = bits_per_dim(network(), DIFFUSION, x_0, 4)
    found = rate_distortion(network(), DIFFUSION, x_0, 4)
    steps = DIFFUSION.num_steps
    for k, step in enumerate(found.reverse_steps.tolist()):
        t = steps - step
        assert float(found.rate[k]) == pytest.approx(
            float((bits.prior + bits.vb[:, t + 1 :].sum(1)).mean())
        )
        assert float(found.distortion[k]) == pytest.approx(float(bits.mse[:, t].mean()))
    torch.testing.assert_close(found.rmse, 127.5 * found.distortion.sqrt())
    assert (found.rate.diff() > 0).all()
    # All but the decoder's term is received at the last reverse step.
    lossless = found.rate[-1] + bits.vb[:, 0].double().mean()
    assert float(lossless) == pytest.approx(float(bits.total.mean()))


def test_what_no_image_drew_is_not_made_up() -> None:
    curve = RateDistortion.of(bound_of_data(bound(), images(1), timesteps=2))
    assert curve.distortion.isnan().sum() == DIFFUSION.num_steps - 3
    assert curve.rate[-1].isnan() and not curve.rate[0].isnan()


def test_tables_and_plots(tmp_path: Path) -> None:
    whole = bound_of_data(bound(), images(5))
    curve = RateDistortion.of(whole)
    for one in (whole, curve):
        one.save_csv(tmp_path / "table.csv")
        one.save_plot(tmp_path / "plot.png")
        with (tmp_path / "table.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == DIFFUSION.num_steps
        assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
        key, value = (
            ("vb_bits_per_dim", whole.vb.mean)
            if one is whole
            else (
                "rate_bits_per_dim",
                curve.rate,
            )
        )
        assert [float(row[key]) for row in rows] == pytest.approx(value.tolist(), rel=1e-7)
