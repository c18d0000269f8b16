"""The kernel distance between two sets of features: an unbiased estimate of MMD².

    k(x, y) = (x·y/D + 1)³                                        Bińkowski et al. 2018 (KID)
    MMD² = mean_{i≠j} k(x_i, x_j) + mean_{i≠j} k(y_i, y_j) - 2 mean_{i,j} k(x_i, y_j)
                                                                  Gretton et al. 2012, lemma 6

Its expectation does not depend on the number of samples, and it is below 0 as often as above where
the two sets are drawn alike. Blocks of both keep its cost linear and tell its error: each sample is
in one block, where KID's usual random subsets overlap.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 1000


@dataclass(frozen=True)
class KernelDistance:
    """mean: of the blocks' MMD². standard_error: of that; NaN of one block."""

    mean: float
    standard_error: float
    blocks: int


def kernel_distance(x: Tensor, y: Tensor, block: int = BLOCK) -> KernelDistance:
    """Between features x [M, D] and y [N, D], in as many blocks of both as hold about ``block`` of
    the smaller set. Raises ValueError for fewer than two samples, other shapes, NaN or Inf."""
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(
            f"expected features [M, D] and [N, D], got {list(x.shape)} and {list(y.shape)}"
        )
    if not (x.isfinite().all() and y.isfinite().all()):
        raise ValueError("expected finite features, got NaN or Inf")
    fewest = min(len(x), len(y))
    if fewest < 2 or block < 2:
        raise ValueError(f"expected two samples at least in a block, got {min(fewest, block)}")
    blocks = max(fewest // block, 1)
    found = [
        _mmd(a.double(), b.double())
        for a, b in zip(x.tensor_split(blocks), y.tensor_split(blocks), strict=True)
    ]
    mean = math.fsum(found) / blocks
    spread = math.fsum((value - mean) ** 2 for value in found)
    error = math.sqrt(spread / (blocks - 1) / blocks) if blocks > 1 else math.nan
    return KernelDistance(mean, error, blocks)


def _mmd(x: Tensor, y: Tensor) -> float:
    own = _mean_of_pairs(_kernel(x, x)) + _mean_of_pairs(_kernel(y, y))
    return float(own - 2 * _kernel(x, y).mean())


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _mean_of_pairs(kernel: Tensor) -> Tensor:
    """Of i ≠ j."""
    count = len(kernel)
    return (kernel.sum() - torch.trace(kernel)) / (count * (count - 1))
