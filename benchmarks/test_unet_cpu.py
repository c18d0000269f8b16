"""A call of the whole network, by every library and setting that is installed.

Run: pytest benchmarks/test_unet_cpu.py --benchmark-enable --benchmark-group-by=param:size
THREADS in the environment chooses how many. One contender is timed after the other here; the
ratios that count come from benchmarks.compare_cpu, where they take turns.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

import fastddpm
from benchmarks.compare_cpu import BATCHES
from benchmarks.cpu import calls, measure, networks, work
from benchmarks.cpu.contenders import Contender, Setup, all_contenders

THREADS = int(os.environ.get("THREADS", torch.get_num_threads()))
SIZES = [(name, batch) for name in networks.NAMES for batch in BATCHES[name]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {name: tmp_path_factory.mktemp("networks") / name for name in networks.NAMES}
    for name, folder in found.items():
        networks.write(name, folder)
    return found


@pytest.mark.parametrize("contender", all_contenders(), ids=lambda contender: contender.label)
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}_{size[1]}")
def test_call(
    size: tuple[str, int], contender: Contender, folders: dict[str, Path], benchmark: Any
) -> None:
    name, batch = size
    torch.set_num_threads(THREADS)
    setup = Setup(folders[name], batch, THREADS)
    networks.write_expected(setup.folder, batch)
    try:
        call, error = calls.checked(setup, contender)
    except ImportError as missing:
        pytest.skip(str(missing))
    measure.require_agreement(contender, error)
    benchmark(calls.falling(setup, call))
    flop = batch * work.asked(fastddpm.from_pretrained(setup.folder)[0])
    benchmark.extra_info |= {"threads": THREADS, "flop": flop, "relative_error": error}
    if benchmark.stats is not None:
        seconds = benchmark.stats.stats.median
        benchmark.extra_info["effective_flop_per_second"] = flop / seconds
