"""Time to the first image: a fresh process, its imports, the checkpoint, a chain of --steps steps.

"import torch" is what neither library can do without.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import origin
from benchmarks.conftest import Compare
from benchmarks.cpu import networks
from benchmarks.side_by_side import OURS, Turn

pytest.importorskip("diffusers")

OURS_CODE = """
import sys
import fastddpm
from fastddpm import timesteps
unet, diffusion = fastddpm.from_pretrained(sys.argv[1])
short = diffusion.respace(timesteps.linspace(diffusion.num_steps, int(sys.argv[2])))
assert fastddpm.Sampler(unet, short).sample(1).isfinite().all()
"""
THEIR_CODE = """
import sys
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
unet = UNet2DModel.from_pretrained(sys.argv[1], low_cpu_mem_usage=False)
pipeline = DDPMPipeline(unet, DDPMScheduler.from_pretrained(sys.argv[1]))
pipeline.set_progress_bar_config(disable=True)
assert pipeline(num_inference_steps=int(sys.argv[2])).images
"""


@pytest.mark.parametrize("name", networks.NAMES)
def test_first_image(
    name: str, folders: dict[str, Path], compare: Compare, threads: int, steps: int
) -> None:
    arguments = [str(folders[name]), str(steps)]
    codes = {OURS: OURS_CODE, "diffusers": THEIR_CODE, "import torch": "import torch"}
    turns = {library: _process(code, arguments, threads) for library, code in codes.items()}
    compare("Time to first image", f"{name}, {steps} steps", turns, batch=1, steps=steps)


def _process(code: str, arguments: list[str], threads: int) -> Turn:
    command = [sys.executable, "-c", code, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}

    def turn() -> float:
        begin = time.perf_counter()
        subprocess.run(command, check=True, env=environment, cwd=origin.REPOSITORY)
        return 1e3 * (time.perf_counter() - begin)

    return turn
