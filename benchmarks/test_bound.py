"""Bits per dimension of 64 images: ours, and improved-diffusion's calc_bpd_loop around diffusers'
network, at several batch sizes.

Two of the 1000 timesteps are run, t = 0 and 999: every other costs what the latter does. Ours then
computes the decoder's term in half of its rows, where all timesteps have it in one of 1000, and
calc_bpd_loop in all of its rows anyway. improved-diffusion is on no package index: PYTHONPATH has
to name a checkout.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from benchmarks.conftest import Compare
from benchmarks.cpu import bound
from benchmarks.cpu.contenders import Contender, Setup
from benchmarks.side_by_side import OURS
from benchmarks.test_unet_cpu import CONTENDERS
from benchmarks.turns import worker

if importlib.util.find_spec("improved_diffusion") is None:
    pytest.skip("improved-diffusion cannot be imported", allow_module_level=True)

IMAGES, STEPS = 64, 2
BATCHES = (4, 16, 64)


def rivals() -> list[tuple[Contender, int]]:
    """Every form of the network in loops over batches of each size."""
    return [
        (dataclasses.replace(one, name=f"improved-diffusion, {form}, batch {batch}"), batch)
        for one in CONTENDERS
        if not one.is_ours
        for form in [one.name.removeprefix("diffusers, ")]
        for batch in BATCHES
    ]


@pytest.mark.parametrize("name", ["cifar10", "mnist"])
def test_bound(
    name: str, folders: dict[str, Path], compare: Compare, running: ExitStack, threads: int
) -> None:
    turns, found = {}, {}
    for one, batch in [(CONTENDERS[0], IMAGES), *rivals()]:
        given: dict[str, Any] = {
            "setup": Setup(folders[name], batch, threads).as_json(),
            "contender": one.as_json(),
            "clock": "wall",
        }
        process = worker(bound.prepared, **given, images=IMAGES, steps=STEPS)
        own = running.enter_context(process)
        turns[one.name], found[one.name] = own.turn, own.found
    for rival, bits in found.items():
        # In float32 theirs loses digits of the decoder's tails.
        assert bits == pytest.approx(found[OURS], rel=1e-3), rival
    compare(
        "Bits per dimension", f"{name}, {IMAGES} images, {STEPS} timesteps", turns, batch=IMAGES
    )
