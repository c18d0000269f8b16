"""Forward passes of improved-diffusion's UNetModel."""

from __future__ import annotations

from typing import Any

import numpy as np

from golden_groups import networks


def run(case: dict[str, Any], inputs: dict[str, Any], ctx: Any) -> dict[str, np.ndarray]:
    return {"out": networks.forward(case, inputs)}
