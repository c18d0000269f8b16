"""The memory that a contender takes at its peak, prepared and called, in a process of its own.

imports = resident memory after all imports
peak    = its high-water mark      − imports
resting = its value after calls    − imports
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.cpu.contenders import Contender, Setup
from benchmarks.turns import worker
from benchmarks.worker import Prepared

STATUS = Path("/proc/self/status")
CALLS = 3


def taken(setup: Setup, contender: Contender) -> dict[str, int]:
    """{"imports": bytes, "peak": bytes, "resting": bytes} of the contender alone.

    Files that it reads are written here before, so that no export counts. Raises Ended if the
    process fails.
    """
    arguments: dict[str, Any] = {"setup": setup.as_json(), "contender": contender.as_json()}
    with worker(prepared, path=contender.path, **arguments) as process:
        found: dict[str, int] = process.found
        return found


def prepared(setup: dict[str, Any], contender: dict[str, Any]) -> Prepared:
    """For a worker, which takes no turns."""
    own = Setup.from_json(setup)
    torch.set_num_threads(own.threads)
    return measured(own, Contender.from_json(contender)), lambda: None


def measured(setup: Setup, contender: Contender) -> dict[str, int]:
    """The same, of this process."""
    for module in contender.modules:
        importlib.import_module(module)
    imports = resident("VmRSS")
    call = contender.call(setup)
    x, t = _inputs(setup)
    for _ in range(CALLS):
        call(x, t)
    now = {"peak": resident("VmHWM"), "resting": resident("VmRSS")}
    return {"imports": imports} | {name: value - imports for name, value in now.items()}


def resident(field: str) -> int:
    """Bytes. VmHWM is this program's own high-water mark; getrusage's ru_maxrss is not: it keeps
    that of the process which started this one."""
    lines = STATUS.read_text().splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith(f"{field}:"))
    return 1024 * int(kilobytes)


def _inputs(setup: Setup) -> tuple[Any, Any]:
    """x and t as the settings in the folder tell, without the network."""
    config = json.loads((setup.folder / "config.json").read_text())
    x = torch.zeros(setup.batch, config["in_channels"], *[config["sample_size"]] * 2)
    return x, torch.full((setup.batch,), 500)
