"""A call of the whole network: our CPU engine and torch's own, each in a process of its own.

ONNX Runtime, OpenVINO and MNN, every setting of each, are in benchmarks.compare_cpu, which looks
at the machine before and after each turn.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import fastddpm
from benchmarks.conftest import Compare
from benchmarks.cpu import calls, contenders, measure, networks, work
from benchmarks.cpu.contenders import Contender, Setup
from benchmarks.side_by_side import OURS
from benchmarks.turns import worker

pytest.importorskip("diffusers")

SIZES = [("cifar10", 1), ("cifar10", 4), ("mnist", 1), ("mnist", 16)]
THEIRS = {"source": "diffusers"}
CONTENDERS = [
    Contender(OURS, "memory=small", contenders.accelerated, {"memory": "small"}),
    *(
        Contender(f"diffusers, {name}", "eager", contenders.torch_eager, {**THEIRS, "name": name})
        for name in contenders.FORMS
    ),
]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}_{size[1]}")
def test_call(
    size: tuple[str, int],
    folders: dict[str, Path],
    compare: Compare,
    running: ExitStack,
    threads: int,
) -> None:
    name, batch = size
    setup = Setup(folders[name], batch, threads)
    networks.write_expected(setup.folder, batch)
    turns = {}
    for one in CONTENDERS:
        arguments: dict[str, Any] = {
            "setup": setup.as_json(),
            "contender": one.as_json(),
            "clock": "wall",
        }
        own = running.enter_context(worker(calls.prepared, **arguments))
        measure.require_agreement(one, own.found)
        turns[one.name] = own.turn
    flop = batch * work.asked(fastddpm.from_pretrained(setup.folder)[0])
    compare("U-Net call", f"{name}, batch {batch}", turns, batch=batch, flop=flop)
