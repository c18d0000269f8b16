"""The ceiling: multiply-adds in registers (peak.cpp), and how much of it neighbours leave.

FLOP a second count the time in which a thread has a processor, so a busy machine does not lower
them; its other figure tells how busy it is.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks.worker import Prepared

SOURCE = Path(__file__).with_name("peak.cpp")
# Compiler flags and bytes of a vector, for each instruction set of the library.
FLAGS = {
    "avx512": (("-mavx512f", "-mfma"), 64),
    "avx2": (("-mavx2", "-mfma"), 32),
    "baseline": ((), 16),
    "neon": ((), 16),
}
SECONDS = 0.1
# In a turn: less than that in which a machine changes.
TURN_SECONDS = 0.03


class Peak(NamedTuple):
    """flop_per_second: of all threads. processor_share: of the time in which they wanted one, 1 on
    an idle machine."""

    flop_per_second: float
    processor_share: float


def built(folder: Path, isa: str, threads: int, seconds: float = SECONDS) -> Callable[[], Peak]:
    """A function that measures once, for so many seconds.

    isa: the instruction set that the engine uses. Raises RuntimeError without a C++ compiler.
    """
    flags, width = FLAGS[isa]
    library = folder / f"peak_{isa}.so"
    compiler = os.environ.get("CXX", "c++")
    command = [compiler, "-O2", "-ffp-contract=fast", *flags, f"-DVECTOR_BYTES={width}"]
    command += ["-std=c++20", "-shared", "-fPIC", "-pthread", str(SOURCE), "-o", str(library)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise RuntimeError(f"no C++ compiler {compiler!r} to measure the peak with") from error
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"{' '.join(command)}: {error.stderr}") from error
    function = ctypes.CDLL(str(library)).peak
    function.restype = None
    found = (ctypes.c_double * 2)()

    def measure() -> Peak:
        function(ctypes.c_int(threads), ctypes.c_double(seconds), found)
        return Peak(*found)

    return measure


def prepared(folder: str, isa: str, threads: int) -> Prepared:
    """For a worker: turns of one measurement, after one that wakes the machine."""
    measure = built(Path(folder), isa, threads, TURN_SECONDS)

    def turn() -> dict[str, float]:
        measure()
        return measure()._asdict()

    return None, turn
