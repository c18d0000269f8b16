"""What machine a result comes from."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from fastddpm.ops.library import cpu_library

# What keeps the libraries that have a switch to an instruction set; ONNX Runtime has none.
AVX2 = {"FASTDDPM_CPU_ISA": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}


def isa() -> str:
    """The instruction set that the engine uses."""
    return cpu_library().isa


def described(threads: int) -> dict[str, Any]:
    """The processor, its cores, and what the engine uses of them."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "isa": isa(),
        "isas": list(cpu_library().isas),
        "load_average_before": os.getloadavg()[0],
    }


def _processor() -> str:
    """Its name as Linux knows it, elsewhere as Python does."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    names = {key.strip(): value.strip() for key, value in fields.items()}
    if "model name" not in names:
        return platform.processor()
    return "{model name}, family {cpu family}, model {model}".format(**names)
