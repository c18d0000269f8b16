"""Mean and spread of values that come in parts, in float64, without keeping them.

    n = n_a + n_b     d = m_b - m_a
    m = m_a + d n_b/n     S = S_a + S_b + d² n_a n_b/n      Chan, Golub and LeVeque 1979

S is the sum of squares about the mean, which never cancels as E[x²] - E[x]² does.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Of a normal distribution, 95 % lies within so many deviations.
_DEVIATIONS_95 = 1.959963984540054


class Moments(NamedTuple):
    """n, mean and squares (S), float64 [...], of values [N, ...] that are not NaN."""

    n: Tensor
    mean: Tensor
    squares: Tensor

    @classmethod
    def of(cls, values: Tensor) -> Moments:
        """Of all values at once, float [N, ...]."""
        values = values.double()
        n = (~values.isnan()).sum(0).double()
        mean = values.nansum(0) / n.clamp(min=1)
        return cls(n, mean, ((values - mean) ** 2).nansum(0))

    def merged(self, other: Moments) -> Moments:
        """Of both parts together."""
        n = self.n + other.n
        share = other.n / n.clamp(min=1)
        step = other.mean - self.mean
        between = step**2 * self.n * share
        return Moments(n, self.mean + step * share, self.squares + other.squares + between)

    def known(self) -> Tensor:
        """The mean, NaN where there was no value."""
        return torch.where(self.n > 0, self.mean, torch.nan)

    def interval(self) -> Tensor:
        """Half the width of the mean's 95 % interval; NaN for fewer than two values.

        By the normal distribution: for some thirty independent values or more.
        """
        variance = self.squares / (self.n - 1) / self.n
        return torch.where(self.n > 1, _DEVIATIONS_95 * variance.sqrt(), torch.nan)
