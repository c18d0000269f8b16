"""Every kernel and engine of this machine against the reference, and the hashes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.gpu.options import Options
from fastddpm import selfcheck


def run(options: Options) -> Iterator[tuple[str, Any]]:
    """Yields (name, outcome) of each check, then ("reference_hashes", ...) and ("passed", ...)."""
    outcomes = []
    for check in selfcheck.all_checks(torch.device("cuda"), quick=options.quick):
        outcome = selfcheck.run(check)
        outcomes.append(outcome)
        print(f"{outcome.name}: {outcome.passed} {outcome.says}", flush=True)
        yield outcome.name, outcome.as_dict()
    hashes = selfcheck.reference_hashes()
    yield "reference_hashes", hashes
    # The reference runs on the CPU, on the same inputs as the Triton kernels.
    wrong = [
        name
        for name, sha256 in hashes.items()
        for outcome in outcomes
        if outcome.name == f"{name}, triton" and outcome.sha256 != sha256
    ]
    yield "hashes_that_differ", wrong
    yield "passed", not wrong and all(outcome.passed is not False for outcome in outcomes)
