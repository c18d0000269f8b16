"""The library behind the golden sets: run(case, inputs, ctx) -> {output name: numpy array}.

One module of golden_groups for each group of cases; a group without one is not covered (None).
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

# The checker loads this file by its location.
sys.path.insert(0, str(Path(__file__).parent))


def run(case: dict[str, Any], inputs: dict[str, Any], ctx: Any) -> dict[str, np.ndarray] | None:
    name = f"golden_groups.{case['group']}"
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        return None
    return module.run(case, inputs, ctx)
