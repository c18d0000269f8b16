"""The CPU program's errors beside torch's own, layer by layer and for the whole network.

    error = |output - exact| / |exact|      Euclidean norm, exact in float64

for the layers of the network for CIFAR-10, one sample, random numbers. torch's own error depends on
the instruction set: its convolutions sum in one chain with AVX2 and in blocks with AVX-512. So the
machine's best set is measured, and AVX2 in a process of its own.

Run: python -m benchmarks.cpu_accuracy
Writes benchmarks/results/cpu_accuracy.json
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import fastddpm
from benchmarks import origin, parts
from benchmarks.cpu import calls, instructions, machine, networks
from benchmarks.cpu.contenders import Setup, accelerated

OUT = origin.RESULTS / "cpu_accuracy.json"
PARTS = ("avx2", "best")
LIMIT = 1800.0


@torch.inference_mode()
def measured() -> Iterator[tuple[str, Any]]:
    """Yields (section, figures)."""
    yield "instruction_set", machine.isa()
    yield "layers", {one.name: _layer(one) for one in instructions.measured(1)}
    yield "networks", {name: _network(name) for name in networks.NAMES}


def _layer(one: instructions.Measured) -> dict[str, float]:
    torchs = one.torchs()
    one.program(1)()
    ours = one.output()
    return _beside(ours, torchs.reshape(ours.shape), one.exact().reshape(ours.shape))


def _network(name: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        networks.write(name, Path(folder))
        unet, _ = fastddpm.from_pretrained(folder)
        x, t = networks.inputs(unet, 1)
        ours = accelerated(Setup(Path(folder), 1, 1))(x, t)
        return _beside(ours, unet(x, t), networks.exact(unet, x, t))


def _beside(ours: torch.Tensor, torchs: torch.Tensor, exact: torch.Tensor) -> dict[str, float]:
    own, theirs = calls.agreement(ours, exact), calls.agreement(torchs, exact)
    return {"ours": own, "torch": theirs, "times_torchs": own / theirs}


def table(title: str, found: dict[str, dict[str, float]]) -> str:
    """In Markdown."""
    lines = [f"| {title} | fastddpm | torch | times torch's |", "|---|---:|---:|---:|"]
    lines += [
        f"| {name} | {e['ours']:.1e} | {e['torch']:.1e} | {e['times_torchs']:.2f} |"
        for name, e in found.items()
    ]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0 if both parts ran, else 1."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cpu_accuracy", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--out", type=Path, default=OUT, help="JSON to write")
    parser.add_argument("--piece", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.piece is not None:
        parts.write_piece(measured(), given.piece)
        return 0

    def command(part: str, piece: Path) -> list[str]:
        settings = machine.AVX2 if part == "avx2" else {}
        own = [sys.executable, "-m", "benchmarks.cpu_accuracy", "--piece", str(piece)]
        return ["env", *(f"{name}={value}" for name, value in settings.items()), *own]

    header = {**origin.described(), "machine": machine.described(torch.get_num_threads())}
    result = parts.run_all(list(PARTS), command, given.out, header, LIMIT)
    for part in result["parts"].values():
        found = part["found"]
        for section in ("layers", "networks"):
            print(table(f"{found['instruction_set']}, {section}", found[section]))
    print(f"written: {given.out}")
    return 0 if all("error" not in part for part in result["parts"].values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
