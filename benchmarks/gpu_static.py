"""What each kernel's machine code costs, read and executed without a GPU.

For every call of tests/ptx/calls.py and sm_80, sm_90, sm_100: registers, stack, spills, shared
memory, width of the bulk loads and stores, special-function and machine instructions an element,
and the bytes moved, as a multiple of the least: of a kernel's tensors each once, and of the call's,
which a call of two kernels reads twice. A convolution's tiles read their factors again, out of the
L2 cache.

Run: python -m benchmarks.gpu_static [--only TEXT]
Prints a table; writes benchmarks/results/gpu_static.json unless --only chooses some of the calls.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "tests"))
# The ops launch kernels on CPU tensors only where Triton interprets; nothing is interpreted here.
os.environ.setdefault("TRITON_INTERPRET", "1")

from ptx import SMS, Figures, compile_all, figures  # noqa: E402
from ptx.calls import CALLS, CONVOLUTIONS, Call  # noqa: E402

from benchmarks import origin  # noqa: E402
from fastddpm import atomic  # noqa: E402

RESULT = origin.RESULTS / "gpu_static.json"
COLUMNS = {
    "sm": "sm",
    "warps": "warps",
    "registers": "registers",
    "stack": "stack",
    "spills": "spills",
    "shared": "shared",
    "load_bits": "load",
    "store_bits": "store",
    "special": "MUFU/el.",
    "instructions": "instr./el.",
    "own_ratio": "bytes ÷ kernel's least",
    "ratio": "call's bytes ÷ least",
}


def measure(call: Call) -> list[dict[str, Any]]:
    """A row for each kernel and sm; ``ratio`` is that of the whole call, ``own_ratio`` of the
    kernel."""
    launched = {sm: call.launches(sm) for sm in SMS}
    if not call.by_gpu:
        compile_all(launched[SMS[0]][0])
    rows = []
    for sm, (launches, work) in launched.items():
        kernels = figures(launches, sm, work.elements, call.in_place)
        moved = sum(kernel.bytes_moved for kernel in kernels)
        ratio = moved / work.least_bytes
        for kernel in kernels:
            own = ratio if len(kernels) == 1 else kernel.bytes_moved / kernel.least_bytes
            rows.append(_row(call, kernel, own, ratio))
    return rows


def _row(call: Call, kernel: Figures, own_ratio: float, ratio: float) -> dict[str, Any]:
    names = ("kernel", "sm", "warps", "registers", "stack", "spills", "shared", "bytes_moved")
    return {
        "call": call.name,
        **{name: getattr(kernel, name) for name in names},
        "load_bits": list(kernel.load_bits),
        "store_bits": list(kernel.store_bits),
        "special": round(kernel.special, 2),
        "instructions": round(kernel.instructions, 1),
        "own_ratio": round(own_ratio, 3),
        "ratio": round(ratio, 3),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = [
        f"| call | kernel | {' | '.join(COLUMNS.values())} |",
        f"|---|---|{'---:|' * len(COLUMNS)}",
    ]
    for row in rows:
        cells = [_cell(row[name]) for name in COLUMNS]
        lines.append(f"| {row['call']} | {row['kernel']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return ", ".join(str(bits) for bits in value) or "–" if isinstance(value, list) else str(value)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", metavar="TEXT", help="calls whose name has this")
    only = parser.parse_args().only
    every = (*CALLS, *CONVOLUTIONS)
    chosen = [call for call in every if only in call.name]
    if not chosen:
        parser.error(f"--only {only}: expected a part of {', '.join(call.name for call in every)}")
    rows: list[dict[str, Any]] = []
    for call in chosen:
        print(call.name, file=sys.stderr)
        rows += measure(call)
    markdown = table(rows)
    print(markdown)
    if not only:
        origin.write(RESULT, origin.described() | {"rows": rows})
        atomic.write(RESULT.with_suffix(".md"), markdown + "\n")


if __name__ == "__main__":
    main()
