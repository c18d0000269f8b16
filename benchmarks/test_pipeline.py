"""A diffusers DDPMPipeline and the accelerated one, called alike: whole chains of --steps steps.

The two draw the same noise, and nothing is timed before they have drawn the same images.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.conftest import Compare
from benchmarks.cpu import pipeline
from benchmarks.cpu.contenders import Setup
from benchmarks.side_by_side import OURS
from benchmarks.turns import worker

pytest.importorskip("diffusers")

SIZES = [("cifar10", 1), ("cifar10", 16), ("mnist", 1), ("mnist", 16)]
# Of 255, and of all pixels those that must be equal.
LEVELS, EQUAL = 2, 0.999


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}_{size[1]}")
def test_pipeline(
    size: tuple[str, int],
    folders: dict[str, Path],
    compare: Compare,
    running: ExitStack,
    threads: int,
    steps: int,
) -> None:
    name, batch = size
    given: dict[str, Any] = {"setup": Setup(folders[name], batch, threads).as_json()}
    workers = {
        library: running.enter_context(
            worker(pipeline.prepared, **given, steps=steps, accelerated=library == OURS)
        )
        for library in (OURS, "diffusers")
    }
    ours, theirs = (np.array(one.found, dtype=np.int16) for one in workers.values())
    apart = np.abs(ours - theirs)
    assert apart.max() <= LEVELS and (apart == 0).mean() >= EQUAL
    turns = {library: one.turn for library, one in workers.items()}
    facts: dict[str, Any] = {"steps": steps, "largest_difference_of_255": int(apart.max())}
    facts["equal_pixels"] = float((apart == 0).mean())
    compare("DDPMPipeline", f"{name}, batch {batch}, {steps} steps", turns, batch=batch, **facts)
