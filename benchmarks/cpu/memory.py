"""The memory that a contender takes at its peak, prepared and called, in a process of its own.

    imports = resident memory after all imports
    peak    = its high-water mark      − imports
    resting = its value after calls    − imports

Run by compare_cpu as: python -m benchmarks.cpu.memory FOLDER BATCH THREADS LABEL
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from benchmarks import report
from benchmarks.cpu.contenders import Contender, Setup, all_contenders

STATUS = Path("/proc/self/status")
CALLS = 3


def taken(setup: Setup, contender: Contender) -> dict[str, int]:
    """{"imports": bytes, "peak": bytes, "resting": bytes} of the contender alone.

    Files that it reads are written here before, so that no export counts. Raises RuntimeError if
    the process fails.
    """
    command = [sys.executable, "-m", "benchmarks.cpu.memory", str(setup.folder)]
    command += [str(setup.batch), str(setup.threads), contender.label]
    made = subprocess.run(
        command, capture_output=True, text=True, cwd=report.REPOSITORY, check=False
    )
    if made.returncode != 0:
        raise RuntimeError(f"exit code {made.returncode}: {made.stderr[-500:].strip()}")
    found: dict[str, int] = json.loads(made.stdout.splitlines()[-1])
    return found


def failures(setup: Setup, asked: Iterable[Contender]) -> dict[str, str]:
    """By label those that do not survive in a process of their own, and how it ended."""
    failed = {}
    for contender in asked:
        try:
            taken(setup, contender)
        except RuntimeError as error:
            failed[contender.label] = str(error)
    return failed


def measured(setup: Setup, contender: Contender) -> dict[str, int]:
    """The same, of this process."""
    for module in contender.modules:
        importlib.import_module(module)
    imports = resident("VmRSS")
    call = contender.make(setup)
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


def main(arguments: list[str]) -> None:
    """Print the figures of one contender as JSON."""
    folder, batch, threads, label = arguments
    setup = Setup(Path(folder), int(batch), int(threads))
    torch.set_num_threads(setup.threads)
    (contender,) = (one for one in all_contenders() if one.label == label)
    print(json.dumps(measured(setup, contender)))


if __name__ == "__main__":
    main(sys.argv[1:])
