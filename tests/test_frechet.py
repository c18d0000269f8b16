"""Statistics of features and the distances between them, against scipy and closed forms."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from safetensors.torch import save_file
from torch import Tensor

from fastddpm.evaluation import FeatureStatistics, frechet_distance, kernel_distance, statistics_of
from fastddpm.evaluation.frechet import along_data


def features(count: int, dimensions: int = 12, seed: int = 0) -> Tensor:
    """Correlated, and far from 0: E[h²] - E[h]² would lose half of the digits."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dimensions, dimensions, generator=generator, dtype=torch.float64)
    return torch.randn(count, dimensions, generator=generator).double() @ mixing + 1e4 + seed


def of_scipy(a: Tensor, b: Tensor) -> float:
    covariances = [np.cov(x.numpy(), rowvar=False) for x in (a, b)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    traces = sum(np.trace(c) for c in covariances) - 2 * np.trace(root)
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + traces)


@pytest.mark.parametrize("dimensions", [1, 2, 12, 40])
def test_the_distance_is_that_of_scipys_root(dimensions: int) -> None:
    a, b = features(300, dimensions), features(200, dimensions, seed=1)
    found = frechet_distance(FeatureStatistics.of(a), FeatureStatistics.of(b))
    assert found == pytest.approx(of_scipy(a, b) if dimensions > 1 else one(a, b), rel=1e-9)


def one(a: Tensor, b: Tensor) -> float:
    """In one dimension: (μ - μ')² + (σ - σ')²."""
    return float((a.mean() - b.mean()) ** 2 + (a.std() - b.std()) ** 2)


def test_two_gaussians_in_closed_form() -> None:
    """Of commuting covariances: ‖μ - μ'‖² + Σ (σ_k - σ_k')². The third sets are singular alike."""
    turned = torch.linalg.qr(torch.randn(3, 3).double())[0]

    def gaussian(mean: list[float], deviations: list[float]) -> FeatureStatistics:
        variances = torch.tensor(deviations).double() ** 2
        scatter = 100 * turned @ variances.diag() @ turned.T
        return FeatureStatistics(101, turned @ torch.tensor(mean).double(), scatter)

    a = gaussian([1, 0, 2], [1, 2, 3])
    assert frechet_distance(a, gaussian([1, 3, 2], [2, 2, 1])) == pytest.approx(
        9 + 1 + 4, rel=1e-12
    )
    assert abs(frechet_distance(a, a)) < 1e-12
    flat, flatter = gaussian([0, 0, 0], [1, 0, 1e-3]), gaussian([0, 0, 0], [2, 0, 0])
    # Rounding leaves 1e-16 of a variance that is 0, and the root of that meets the other's 1e-3.
    assert frechet_distance(flat, flatter) == pytest.approx(1 + 1e-6, rel=1e-10)
    assert abs(frechet_distance(flat, flat)) < 1e-12


@pytest.mark.parametrize("sizes", [(500,), (1, 499), (7, 0, 93, 400), (100,) * 5])
def test_batches_give_what_all_at_once_gives(sizes: tuple[int, ...]) -> None:
    whole = features(500)
    expected = FeatureStatistics.of(whole)
    torch.testing.assert_close(expected.covariance, torch.cov(whole.T), rtol=1e-12, atol=1e-12)
    found = statistics_of(lambda part: part, whole.split(sizes))
    parts = [FeatureStatistics.of(part) for part in whole.split(sizes)]
    backwards = sum(reversed(parts), FeatureStatistics.none(12))
    halves = sum(parts[::2], FeatureStatistics.none(12)) + sum(
        parts[1::2], FeatureStatistics.none(12)
    )
    for statistics in (found, backwards, halves):
        assert statistics.count == 500
        torch.testing.assert_close(statistics.mean, expected.mean, rtol=1e-14, atol=0)
        torch.testing.assert_close(statistics.scatter, expected.scatter, rtol=1e-11, atol=1e-9)


def test_float32_features_are_summed_in_float64() -> None:
    """A million of them near 1000, in a hundred batches."""
    whole = 1000 + torch.randn(1_000_000, 1, generator=torch.Generator().manual_seed(3))
    found = statistics_of(lambda part: part, whole.split(10_000))
    expected = whole.double()
    assert float(found.mean) == pytest.approx(float(expected.mean()), rel=1e-14)
    assert float(found.covariance) == pytest.approx(float(expected.var()), rel=1e-10)


def test_statistics_come_back_from_their_file(tmp_path: Path) -> None:
    kept = FeatureStatistics.of(features(50))
    kept.save(tmp_path / "kept.safetensors", features="mnist")
    found, notes = FeatureStatistics.load(tmp_path / "kept.safetensors")
    assert found.count == 50 and notes == {"features": "mnist"}
    assert torch.equal(found.mean, kept.mean) and torch.equal(found.scatter, kept.scatter)


def test_files_of_something_else_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(b"no tensors here")
    with pytest.raises(ValueError, match="expected statistics of features"):
        FeatureStatistics.load(path)
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="expected statistics of features"):
        FeatureStatistics.load(path)
    wrong = {"count": torch.tensor(3), "mean": torch.zeros(3), "scatter": torch.zeros(3, 2)}
    save_file(wrong, path)
    with pytest.raises(ValueError, match=r"expected a mean \[D\] and a scatter \[D, D\]"):
        FeatureStatistics.load(path)


def test_what_no_distance_can_be_told_of() -> None:
    few, many = FeatureStatistics.of(features(12)), FeatureStatistics.of(features(100))
    with pytest.raises(ValueError, match="of 12 samples in 12 dimensions is singular"):
        frechet_distance(many, few)
    assert frechet_distance(many, few, allow_singular=True) == pytest.approx(
        of_scipy(features(100), features(12)), rel=1e-6
    )
    with pytest.raises(ValueError, match="of one kind, got 12 and 11"):
        frechet_distance(many, FeatureStatistics.of(features(100, 11)))
    with pytest.raises(ValueError, match="of one kind, got 12 and 11"):
        many + FeatureStatistics.of(features(100, 11))
    with pytest.raises(ValueError, match="two features at least, got 1"):
        frechet_distance(many, FeatureStatistics.of(features(1)), allow_singular=True)
    with pytest.raises(ValueError, match="finite features"):
        FeatureStatistics.of(torch.tensor([[math.nan]]))
    with pytest.raises(ValueError, match=r"floating point .B, D., got torch.int64"):
        FeatureStatistics.of(torch.ones(3, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="got none"):
        statistics_of(lambda part: part, [])


def test_the_kernel_distance_is_its_double_sum() -> None:
    x, y = torch.randn(9, 4).double(), torch.randn(7, 4).double() + 0.3

    def kernel(a: Tensor, b: Tensor) -> float:
        return float((a @ b / 4 + 1) ** 3)

    def pairs(z: Tensor) -> float:
        of = [kernel(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j]
        return sum(of) / len(of)

    across = sum(kernel(a, b) for a in x for b in y) / (9 * 7)
    found = kernel_distance(x, y)
    assert found.mean == pytest.approx(pairs(x) + pairs(y) - 2 * across, rel=1e-10)
    assert found.blocks == 1 and math.isnan(found.standard_error)


def test_the_kernel_distance_is_unbiased_and_knows_its_error() -> None:
    """Of sets drawn alike it is 0 within its own error, however small the blocks; of sets 0.3 of
    a deviation apart it is not."""
    generator = torch.Generator().manual_seed(2)
    x, y = torch.randn(2, 20_000, 8, generator=generator)
    for block in (10, 100, 1000):
        same = kernel_distance(x, y, block)
        assert same.blocks == 20_000 // block
        assert abs(same.mean) < 4 * same.standard_error
        apart = kernel_distance(x, y + 0.3, block)
        assert apart.mean > 8 * apart.standard_error
    with pytest.raises(ValueError, match="two samples at least"):
        kernel_distance(x[:1], y)
    with pytest.raises(ValueError, match="expected features"):
        kernel_distance(x, y[:, :7])
    for value in (math.nan, math.inf):
        spoilt = y.clone()
        spoilt[3, 4] = value
        with pytest.raises(ValueError, match="expected finite features"):
            kernel_distance(x, spoilt)


def test_sets_along_the_axes_of_the_data() -> None:
    """Axes that are turned, deviations and means that are known along them."""
    generator = torch.Generator().manual_seed(3)
    turned, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=generator))
    deviations, others = torch.tensor([3.0, 2.0, 1.0]), torch.tensor([1.0, 5.0, 2.0])
    apart = torch.tensor([0.5, -2.0, 0.0])

    def statistics(spread: torch.Tensor, mean: torch.Tensor) -> FeatureStatistics:
        covariance = turned @ torch.diag(spread.double() ** 2) @ turned.T
        return FeatureStatistics(11, turned @ mean.double(), 10 * covariance)

    found = along_data(statistics(others, apart), statistics(deviations, torch.zeros(3)))
    for values, expected in zip(found, (deviations, others, apart.abs()), strict=True):
        torch.testing.assert_close(values, expected.double(), rtol=1e-12, atol=1e-12)
