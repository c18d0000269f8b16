"""Forward passes of Ho's own source: one network that two systems computed, so one result twice."""

from __future__ import annotations

from typing import Any

import numpy as np

from golden_groups import networks


def run(case: dict[str, Any], inputs: dict[str, Any], ctx: Any) -> dict[str, np.ndarray]:
    out = networks.forward(case, inputs)
    return {name: out for name in case["outputs"]}
