"""What this device can do at most: bytes a second of a large triad, FLOP a second of a product.

triad   a = b + c·s over float32 arrays far larger than the caches: two reads and a write
product an n×n by n×n matrix product: 2n³ FLOP
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.gpu.options import Options
from benchmarks.timing import cuda_milliseconds, summary
from fastddpm.engine import precision

# Elements of an array of the triad: 1 GiB each.
ELEMENTS = 1 << 28
SIZE = 8192
ROUNDS = 15


def run(options: Options) -> Iterator[tuple[str, Any]]:
    """Yields ("bytes_per_second", ...), then ("flop_per_second", {dtype: ...})."""
    yield "bytes_per_second", bytes_per_second()
    yield "flop_per_second", {dtype: flop_per_second(dtype) for dtype in options.dtypes}


def bytes_per_second(elements: int = ELEMENTS) -> dict[str, Any]:
    """Of the triad, each array read or written once."""
    a, b, c = (torch.ones(elements, dtype=torch.float32, device="cuda") for _ in range(3))
    return _rate(lambda: torch.add(b, c, alpha=0.5, out=a), 3 * 4 * elements)


def flop_per_second(dtype: str, size: int = SIZE) -> dict[str, Any]:
    """Of a square product in "float32", "tf32" or "bfloat16"."""
    kind = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    a, b = (torch.randn(size, size, dtype=kind, device="cuda") for _ in range(2))
    out = torch.empty_like(a)
    with precision(tf32=dtype == "tf32"):
        return _rate(lambda: torch.mm(a, b, out=out), 2 * size**3)


def _rate(call: Any, amount: int) -> dict[str, Any]:
    for _ in range(3):
        call()
    milliseconds = [cuda_milliseconds(call) for _ in range(ROUNDS)]
    return summary([1e3 * amount / time for time in milliseconds])
