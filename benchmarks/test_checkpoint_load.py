"""A checkpoint's folder to a network that is ready to run, files in the page cache.

diffusers leaves the weights in the file's mapping; fastddpm copies them unless `mapped` is asked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import fastddpm
from benchmarks.conftest import Compare
from benchmarks.cpu import networks
from benchmarks.side_by_side import OURS, timed

diffusers = pytest.importorskip("diffusers")


@pytest.mark.parametrize("name", networks.NAMES)
@torch.inference_mode()
def test_load(name: str, folders: dict[str, Path], compare: Compare) -> None:
    folder = folders[name]

    def ours() -> Any:
        return fastddpm.from_pretrained(folder)[0]

    def mapped() -> Any:
        return fastddpm.from_pretrained(folder, mapped=True)[0]

    def theirs() -> Any:
        return diffusers.UNet2DModel.from_pretrained(folder, low_cpu_mem_usage=False)

    x, t = networks.inputs(ours(), 1)
    assert (ours()(x, t) - theirs()(x, t).sample).abs().max() < 1e-4
    contenders = {OURS: ours, "diffusers": theirs, "fastddpm, mapped": mapped}
    turns = {library: timed(load) for library, load in contenders.items()}
    compare("Checkpoint load", name, turns, batch=1)
