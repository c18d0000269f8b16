"""Rows that join a chain on its way: many starts run as one batch.

    x_T  ──┬───── steps T-1, ..., t ──┬── steps t-1, ..., t' ──┬── ...
           rows                 + rows of t              + rows of t'

A step is the same for all its rows, whenever they began. So the chain runs once, from the highest
level down, its batch grows as it comes by where others begin, and the network is called as often as
for the longest of them, with no row that is not needed. What joins may be made of what is there:
branches of a chain begin where it has come to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastddpm.sampler.chain import Chain
from fastddpm.sampler.conditions import NO_CONDITIONS, Conditions
from fastddpm.sampler.noise_source import NoiseSource


@dataclass(frozen=True, eq=False)
class Joining:
    """Rows that take the step of index ``level`` first.

    rows: their states, float32 [b, C, H, W], of those that run already, [B, C, H, W] with B >= 0.
    """

    level: int
    rows: Callable[[Tensor], Tensor]


def decode(
    chain: Chain,
    shape: tuple[int, ...],
    joining: Sequence[Joining],
    noise: Callable[[int], NoiseSource],
    *,
    conditions: Conditions = NO_CONDITIONS,
    after_step: Callable[[], None] | None = None,
) -> Tensor:
    """The images of all rows, in the order given: float32 [B, C, H, W].

    joining:    one at least, their levels falling.
    noise:      of the first b rows, as a function of b.
    conditions: of all rows.
    after_step: called after each step; None: nobody is.
    """
    x = torch.empty((0, *shape), dtype=torch.float32, device=chain.place.device)
    stops = [other.level + 1 for other in joining[1:]] + [0]
    for rows, stop in zip(joining, stops, strict=True):
        x = torch.cat([x, rows.rows(x)])
        if stop <= rows.level and len(x):
            x = chain.decode(
                x,
                noise(len(x)),
                rows.level,
                stop=stop,
                conditions=conditions.rows(slice(0, len(x))),
                after_step=after_step,
            )
    return x
