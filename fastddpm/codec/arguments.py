"""What a caller may ask of the codec: plain values, or a ValueError that names what came."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

LEAST_TARGET, MOST_TARGET = 1, 16


def whole(what: str, value: Any) -> int:
    """An integer of any library; ValueError for a number that would have to be rounded."""
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"expected {what} as an integer, got {value!r}") from None


def chain(steps: Any, T: int) -> tuple[int, tuple[int, ...] | None]:
    """How many steps, and which, ascending, if they are listed."""
    if isinstance(steps, str):
        raise ValueError(f"expected a number of steps or a list of timesteps, got {steps!r}")
    if getattr(steps, "ndim", 0) == 0 and not isinstance(steps, Sequence):
        return whole("steps", steps), None
    positions = tuple(sorted(whole("a timestep", step) for step in steps))
    if not positions or len(set(positions)) < len(positions):
        raise ValueError("expected different timesteps, at least one")
    if positions[0] < 0 or positions[-1] >= T:
        raise ValueError(f"expected timesteps from 0 to {T - 1}, got {list(positions)}")
    return len(positions), positions


def block_bits(target: float) -> float:
    """Bits of a block."""
    if not LEAST_TARGET <= target <= MOST_TARGET or 2 * target != int(2 * target):
        raise ValueError(
            f"expected a target of {LEAST_TARGET} to {MOST_TARGET} bits, in halves, got {target!r}"
        )
    return float(target)


def pictures(images: Tensor) -> Tensor:
    """uint8 [N, H, W, C]."""
    if not isinstance(images, torch.Tensor):
        raise ValueError(
            f"expected a torch.Tensor, uint8 [N, H, W, C], got {_type(images)} "
            "(torch.from_numpy makes one of an array)"
        )
    return images


def content(data: bytes) -> bytes:
    """A file's bytes."""
    if not isinstance(data, bytes | bytearray | memoryview):
        raise ValueError(f"expected a file's bytes, got {_type(data)}")
    return bytes(data)


def _type(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
