"""Chains of our sampler, and of diffusers' loop around its own network: --steps steps after the
first, which is not timed (benchmarks/cpu/chain.py).

The two draw other noise, so their images are not compared: test_unet_cpu.py compares the networks,
test_pipeline.py chains of the same noise.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from benchmarks.conftest import Compare
from benchmarks.cpu import chain
from benchmarks.cpu.contenders import Setup
from benchmarks.test_unet_cpu import CONTENDERS
from benchmarks.turns import worker

SIZES = [("cifar10", 1), ("mnist", 16)]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}_{size[1]}")
def test_chain(
    size: tuple[str, int],
    folders: dict[str, Path],
    compare: Compare,
    running: ExitStack,
    threads: int,
    steps: int,
) -> None:
    name, batch = size
    setup = Setup(folders[name], batch, threads)
    turns = {}
    for one in CONTENDERS:
        given: dict[str, Any] = {
            "setup": setup.as_json(),
            "contender": one.as_json(),
            "clock": "wall",
            "loop": "diffusers",
        }
        turns[one.name] = running.enter_context(worker(chain.prepared, **given, steps=steps)).turn
    compare("Whole chain", f"{name}, batch {batch}, {steps} steps", turns, batch=batch, steps=steps)
