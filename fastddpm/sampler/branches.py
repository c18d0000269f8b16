"""Branches of a chain: images that share x_t and differ in what is drawn after (Ho et al. 2020,
figure 7).

    x_T, ..., x_t        the chain of one sample, the trunk
    x_{t-1}, ..., x_0    n times from that x_t, each with noise of its own

With a large t only coarse structure is shared, with a small one all but details. Branch j has the
same noise at every t, so that images of one j differ by what they share with the trunk alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastddpm.sampler.chain import Chain
from fastddpm.sampler.conditions import Conditions
from fastddpm.sampler.joining import Joining, decode

# The sample index of the counter is branch j's number above 40 bits of the trunk's own, and its
# sign, which no sample's index has.
INDEX_BITS, BRANCH_BITS = 40, 22


@dataclass(frozen=True, eq=False)
class Branches:
    """All float32.

    x_t:    [K, C, H, W], the shared states, in the order of the t asked for.
    images: [K, n, C, H, W], what they lead to.
    trunk:  [C, H, W], the image of the sample's own chain.
    """

    x_t: Tensor
    images: Tensor
    trunk: Tensor


def branches(
    chain: Chain,
    shape: tuple[int, ...],
    index: int,
    levels: Sequence[int],
    n: int,
    seed: int,
    conditions: Conditions,
    after_step: Callable[[], None] | None,
) -> Branches:
    """n branches of sample ``index`` from each of the levels, step indices 0 to T-1, all in one
    chain of T steps. conditions: of 1 + K n rows. Raises ValueError for what is out of range."""
    _check(chain, index, levels, n)
    latents: dict[int, Tensor] = {}

    def begin(_: Tensor) -> Tensor:
        return chain.counter_noise(seed, torch.tensor([index], device="cpu"), shape).initial(
            chain.num_steps
        )

    def at(position: int) -> Joining:
        def rows(running: Tensor) -> Tensor:
            latents[position] = running[:1].clone()
            return latents[position].expand(n, *shape)

        return Joining(levels[position], rows)

    falling = sorted(range(len(levels)), key=lambda position: -levels[position])
    joining = [Joining(chain.num_steps - 1, begin), *map(at, falling)]
    own = torch.tensor([index, *len(levels) * _indices(index, n)], device="cpu")
    images = decode(
        *(chain, shape, joining, lambda rows: chain.counter_noise(seed, own[:rows], shape)),
        conditions=conditions,
        after_step=after_step,
    )
    drawn = images[1:].reshape(len(levels), n, *shape)
    return Branches(
        torch.cat([latents[position] for position in range(len(levels))]),
        torch.stack([drawn[falling.index(position)] for position in range(len(levels))]),
        images[0],
    )


def _indices(index: int, n: int) -> list[int]:
    return [(j << INDEX_BITS | index) - (1 << 63) for j in range(n)]


def _check(chain: Chain, index: int, levels: Sequence[int], n: int) -> None:
    if not 0 <= index < 1 << INDEX_BITS:
        raise ValueError(f"index must lie in 0 to 2^{INDEX_BITS} - 1, got {index}")
    if not 1 <= n < 1 << BRANCH_BITS:
        raise ValueError(f"n must lie in 1 to 2^{BRANCH_BITS} - 1, got {n}")
    if any(not 0 <= level < chain.num_steps for level in levels):
        raise ValueError(
            f"t must be step indices from 0 to {chain.num_steps - 1}, got {list(levels)}"
        )
