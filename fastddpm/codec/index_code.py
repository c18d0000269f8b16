"""The law of the index that channel simulation sends, and a code for it.

Candidates come with ratios w = q/p and arrival times τ of a Poisson process of rate 1; the sender
takes the K-th, the one with the least τ/w (channel.py). That least value is Exp(1), and given it
and the chosen w the earlier candidates, which all lost, are Poisson with mean (τ/w) g(w). So

    K - 1 | w  is geometric with mean  g(w) = E_p[(w - W)^+]

and where ln W is normal, N(-I, 2I) under p and N(I, 2I) under q, as it is for two Gaussians of one
covariance and divergence I (nats), g is a put of Black and Scholes:

    g(w) = w Φ((ln w + I)/s) - Φ((ln w - I)/s),  s² = 2I
    P(K > k) = E_q[(g/(1+g))^k]                  by Gauss-Hermite quadrature over ln w

This is the shortest code that knows I alone. A Zipf law (Li and El Gamal 2018; Theis and Yosri
2022) takes at most I + log2(I + 1) + 4 bits on average, and .3 to .5 bits more than this one.

K is sent as its bin and its place there, uniform: bins are half octaves, which costs .01 bits.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

# Candidates that an index can name.
INDEX_BITS = 22

_NODES = 128
# So that machines whose exp differs in the last bit still agree on every table.
_GRID = 2.0**20
# Share of the code that is ready for any index, since I is known roughly.
_SPARE = 1e-3


def _edges() -> NDArray[np.int64]:
    halves = [(1 << e, 3 << e >> 1) for e in range(1, INDEX_BITS)]
    return np.array([1, *(edge for pair in halves for edge in pair), 1 << INDEX_BITS])


# Bin b holds the indices from EDGES[b] to EDGES[b + 1] - 1: 1, 2, 3, 4-5, 6-7, 8-11, ...
EDGES = _edges()
SIZES = np.diff(EDGES)


def bin_of(index: int) -> int:
    """The bin of an index, 1 <= index < 2^INDEX_BITS."""
    return int(np.searchsorted(EDGES, index, side="right")) - 1


@cache
def bin_probabilities(information: float) -> NDArray[np.float64]:
    """P(K in bin b) for a block of so many bits, float64 [bins], summing to 1."""
    survival = _survival(information * math.log(2), EDGES - 1)
    law = -np.diff(survival)
    law = (1 - _SPARE) * law / law.sum() + _SPARE / len(law)
    rounded = np.maximum(np.round(law * _GRID), 1)
    return np.asarray(rounded / rounded.sum())


def _survival(nats: float, k: NDArray[np.int64]) -> NDArray[np.float64]:
    """P(K > k)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    spread = math.sqrt(2 * nats)
    log_w = nats + spread * nodes
    upper, lower = (
        torch.special.ndtr(torch.from_numpy((log_w + sign * nats) / spread)).numpy()
        for sign in (1, -1)
    )
    earlier = np.maximum(np.exp(log_w) * upper - lower, 0)
    # (g/(1+g))^k without a power of nearly 1
    log_share = -np.log1p(1 / np.maximum(earlier, 1e-300))
    survived = np.exp(k[:, None] * log_share[None]) @ (weights / weights.sum())
    return np.asarray(survived)
