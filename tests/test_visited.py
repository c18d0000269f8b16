"""Visited: a timestep is known by where it lies, in whatever list it is an element of."""

from __future__ import annotations

import copy

import pytest
import torch

from fastddpm.integrations.visited import END, UNLISTED, Visited

# Listed with other numbers than the tensor holds, so that it shows which were taken.
TIMESTEPS, LISTED = [9, 6, 3, 0], [90, 60, 30, 0]


def visited(stride: int = 1) -> Visited:
    held = torch.tensor([[t] * stride for t in TIMESTEPS]).flatten()
    return Visited(held[::stride], LISTED)


@pytest.mark.parametrize("stride", [1, 3])
def test_elements_are_known_by_their_place(stride: int) -> None:
    chain = visited(stride)
    assert [chain.number(t) for t in chain.timesteps] == LISTED
    assert chain.number(chain.timesteps[1:2]) == 60
    assert Visited(chain.timesteps).listed == TIMESTEPS


def test_other_tensors_are_read() -> None:
    chain = visited(stride=3)
    assert chain.number(torch.tensor(6)) == 6 and chain.number(6) == 6
    assert chain.number(chain.timesteps[1].clone()) == 6
    # Between two of them, before and behind them.
    whole = chain.timesteps.as_strided((12,), (1,))
    assert [chain.number(whole[k]) for k in (1, 11)] == [9, 0]
    inner = Visited(chain.timesteps[1:3], LISTED[1:3])
    assert [inner.number(t) for t in chain.timesteps] == [9, 60, 30, 0]
    assert chain.number(torch.tensor(6, dtype=torch.int32)) == 6
    assert chain.number(torch.empty((), dtype=torch.int64, device="meta")) is None


def test_a_copy_knows_its_own() -> None:
    chain = visited()
    own = copy.deepcopy(chain)
    assert [own.number(t) for t in own.timesteps] == LISTED
    assert [own.number(t) for t in chain.timesteps] == TIMESTEPS


def test_what_follows() -> None:
    assert Visited(torch.tensor([3, 1, 3, 0])).after(5) == [END, 3, UNLISTED, 1, UNLISTED]
