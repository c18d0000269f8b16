"""diffusers' own suites of its DDPM and DDIM schedulers, with our classes in their place.

They are no part of its wheel: DIFFUSERS_TESTS names the folder ``tests`` of a checkout, of the
version that is installed or near to it. Without torchsde test_compatibles, which makes every
scheduler of diffusers, is left out.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

FOLDER = os.environ.get("DIFFUSERS_TESTS", "")

pytestmark = pytest.mark.skipif(not FOLDER, reason="DIFFUSERS_TESTS names no folder")


@pytest.mark.parametrize(
    "suite, swapped",
    [
        ("test_scheduler_ddpm.py", "DDPMSchedulerTest: FastDDPMScheduler"),
        ("test_scheduler_ddim.py", "DDIMSchedulerTest: FastDDIMScheduler"),
    ],
)
def test_the_suite_passes_with_our_scheduler(suite: str, swapped: str) -> None:
    folder = Path(FOLDER).resolve()
    # A process of its own: its package is called tests, and it sets torch's flags.
    options = ["-p", "swapped_schedulers", "-p", "no:cacheprovider", "-q", "-W", "ignore"]
    without = "" if find_spec("torchsde") else "not test_compatibles"
    options += ["-k", without, "-c", os.devnull, "--rootdir", str(folder)]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(folder / "schedulers" / suite)],
        cwd=folder.parent,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"swapped ['{swapped}']" in run.stdout
    print(run.stdout.splitlines()[-1], f"({without}: no torchsde)" if without else "")
