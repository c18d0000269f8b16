"""Does what is fast compute what the reference computes, on this machine?

Every kernel on every case of its cases.py, and every engine on the built-in model, against plain
PyTorch on the CPU. `fastddpm doctor --selfcheck` prints what is found; the GPU benchmarks run it
before they measure.
"""

from fastddpm.selfcheck.checks import all_checks, reference_hashes
from fastddpm.selfcheck.outcome import Check, Outcome, run

__all__ = ["Check", "Outcome", "all_checks", "reference_hashes", "run"]
