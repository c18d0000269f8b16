"""The Fréchet distance between two sets of images, each a Gaussian of their features.

    d² = ‖μ_1 - μ_2‖² + tr C_1 + tr C_2 - 2 tr (C_1 C_2)^½       Dowson and Landau 1982
    tr (C_1 C_2)^½ = the sum of the singular values of F_1ᵀ F_2,   C = F Fᵀ

With Inception's features it is FID (Heusel et al. 2017). The second line takes no root of a matrix
that is not symmetric, so nothing turns complex and singular covariances lose no digits.

The statistics are the count n, the mean μ and the scatter M = Σ (h - μ)(h - μ)ᵀ in float64. Those
of two sets give those of both (Chan, Golub, LeVeque 1979), so batches are added as they come:

    δ = μ_b - μ_a,    μ = μ_a + δ n_b/n,    M = M_a + M_b + δ δᵀ n_a n_b/n
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from fastddpm import atomic

# float32 [B, C, H, W] in [-1, 1] -> [B, D].
Features = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """Of n features: mean float64 [D] and scatter float64 [D, D], on the CPU. Sums are of sets:
    ``sum(parts, FeatureStatistics.none(D))`` is the statistics of all."""

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def none(cls, dimensions: int) -> FeatureStatistics:
        """Of no features."""
        zeros = torch.zeros(dimensions, dimensions, dtype=torch.float64)
        return cls(0, zeros[0].clone(), zeros)

    @classmethod
    def of(cls, features: Tensor) -> FeatureStatistics:
        """Of features [B, D] of any floating dtype; ValueError for NaN, Inf or another shape."""
        if features.ndim != 2 or not features.is_floating_point():
            raise ValueError(
                f"expected features of floating point [B, D], got {features.dtype} "
                f"{list(features.shape)}"
            )
        rows = features.detach().to("cpu", torch.float64)
        if not rows.isfinite().all():
            raise ValueError("expected finite features, got NaN or Inf")
        if len(rows) == 0:
            return cls.none(rows.shape[1])
        mean = rows.mean(0)
        away = rows - mean
        return cls(len(rows), mean, away.T @ away)

    def __add__(self, other: FeatureStatistics) -> FeatureStatistics:
        if self.mean.shape != other.mean.shape:
            raise ValueError(
                f"expected features of one kind, got {len(self.mean)} and {len(other.mean)} "
                "dimensions"
            )
        count = self.count + other.count
        if count == 0:
            return self
        between = other.mean - self.mean
        share = other.count / count
        return FeatureStatistics(
            count,
            self.mean + share * between,
            self.scatter + other.scatter + self.count * share * torch.outer(between, between),
        )

    @property
    def covariance(self) -> Tensor:
        """M/(n - 1), float64 [D, D]; ValueError for fewer than two features."""
        if self.count < 2:
            raise ValueError(f"a covariance needs two features at least, got {self.count}")
        return self.scatter / (self.count - 1)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All of it as arrays by their names, for ``from_arrays``."""
        return {
            "count": np.array(self.count),
            "mean": self.mean.numpy(),
            "scatter": self.scatter.numpy(),
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> FeatureStatistics:
        """What ``arrays`` returned."""
        mean, scatter = (torch.from_numpy(arrays[name]) for name in ("mean", "scatter"))
        return cls(int(arrays["count"]), mean, scatter)

    def save(self, path: Path, **notes: str) -> None:
        """Write a safetensors file with these notes: whole or not at all."""
        atomic.write(path, save(self.arrays(), notes))

    @classmethod
    def load(cls, path: Path) -> tuple[FeatureStatistics, dict[str, str]]:
        """What ``save`` wrote, and its notes. Raises ValueError for any other file."""
        try:
            with safe_open(path, "pt") as file:
                count, mean, scatter = map(file.get_tensor, ("count", "mean", "scatter"))
                notes = dict(file.metadata() or {})
        except SafetensorError as error:
            raise ValueError(f"{path}: expected statistics of features: {error}") from error
        if mean.ndim != 1 or scatter.shape != (len(mean), len(mean)) or count.numel() != 1:
            raise ValueError(f"{path}: expected a mean [D] and a scatter [D, D]")
        return cls(int(count), mean.double(), scatter.double()), notes


def statistics_of(features: Features, batches: Iterable[Tensor]) -> FeatureStatistics:
    """Of all images, of which one batch is held at a time; ValueError if there are none."""
    found: FeatureStatistics | None = None
    for images in batches:
        part = FeatureStatistics.of(features(images))
        found = part if found is None else found + part
    if found is None:
        raise ValueError("expected images, got none")
    return found


def frechet_distance(
    a: FeatureStatistics, b: FeatureStatistics, *, allow_singular: bool = False
) -> float:
    """d² between the Gaussians of two sets of features.

    It falls with the number of samples, so only distances of equal counts compare. With no more
    samples than dimensions a covariance is singular and most of d² is that: a ValueError unless
    ``allow_singular``.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"expected features of one kind, got {len(a.mean)} and {len(b.mean)} dimensions"
        )
    if not allow_singular:
        refuse_singular(min(a.count, b.count), len(a.mean))
    of_a, of_b = a.covariance, b.covariance
    common = torch.linalg.svdvals(_factor(of_a).T @ _factor(of_b)).sum()
    between = (a.mean - b.mean).square().sum()
    return float(between + of_a.trace() + of_b.trace() - 2 * common)


def refuse_singular(samples: int, dimensions: int) -> None:
    """ValueError for no more samples than dimensions."""
    if samples <= dimensions:
        raise ValueError(
            f"the covariance of {samples} samples in {dimensions} dimensions is singular, and the "
            f"distance would tell their number: expected more than {dimensions} samples, or "
            "allow_singular=True (--allow-singular)"
        )


def along_data(
    samples: FeatureStatistics, data: FeatureStatistics
) -> tuple[Tensor, Tensor, Tensor]:
    """Along each principal axis of the data, the widest first: the deviation of the data, that of
    the samples, and the distance of the means; float64 [D] each."""
    variances, axes = (part.flip(-1) for part in torch.linalg.eigh(data.covariance))
    of_samples = (axes * (samples.covariance @ axes)).sum(0)
    apart = ((samples.mean - data.mean) @ axes).abs()
    return variances.clamp(min=0).sqrt(), of_samples.clamp(min=0).sqrt(), apart


def save_plot(path: Path, samples: FeatureStatistics, data: FeatureStatistics) -> None:
    """``along_data`` as a PNG: where two sets differ."""
    # Not pyplot, whose backend and figures are the process's.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 3), layout="constrained")
    axes = figure.subplots()
    lines = ("deviation of the data", "deviation of the samples", "distance of the means")
    colours = ("black", "C1", "C0")
    for name, colour, values in zip(lines, colours, along_data(samples, data), strict=True):
        axes.plot(torch.arange(1, len(values) + 1), values, color=colour, label=name)
    axes.set(xlabel="principal axis of the data", ylabel="features", yscale="log")
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    with atomic.replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=110)


def _factor(covariance: Tensor) -> Tensor:
    """F with F Fᵀ the covariance, float64 [D, D]."""
    values, vectors = torch.linalg.eigh(covariance)
    factor: Tensor = vectors * values.clamp(min=0).sqrt()
    return factor
