"""See the package."""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu, parts, report
from benchmarks.gpu.options import MODES, PARTS, Options

# Seconds for all parts.
LIMIT, QUICK_LIMIT = 4 * 3600.0, 600.0
SETTINGS = ("modes", "rounds", "workers", "patience")
NO_GPU = "benchmarks.gpu needs a CUDA device, and this torch sees none"


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0 if every part ran and everything was correct, else 1."""
    given = _parser().parse_args(arguments)
    if not torch.cuda.is_available():
        print(NO_GPU, file=sys.stderr)
        return 1
    settings = {name: getattr(given, name) for name in SETTINGS}
    options = Options.of(quick=given.quick, batches=given.batch, dtypes=given.dtype, **settings)
    if given.piece is not None:
        parts.write_piece(_part(given.parts[0], options), given.piece)
        return 0
    device = torch.cuda.get_device_name()
    out = given.out or report.RESULTS / f"gpu_{re.sub('[^a-z0-9]+', '_', device.lower())}.json"
    limit = given.limit or (QUICK_LIMIT if given.quick else LIMIT)
    result = parts.run_all(given.parts, _command(given), out, _header(options), limit)
    print(f"written: {out}")
    return 0 if sound(result) else 1


def sound(result: dict[str, Any]) -> bool:
    """Whether every part of a result ran to its end, and everything was correct."""
    ran = result["parts"]
    checked = ran.get("correctness", {}).get("found", {}).get("passed", True)
    return bool(checked) and all("error" not in part for part in ran.values())


def _part(name: str, options: Options) -> parts.Part:
    # Each imports what it measures; the parent needs none of it.
    part: parts.Part = importlib.import_module(f"benchmarks.gpu.{name}").run(options)
    return part


def _command(given: argparse.Namespace) -> Any:
    """The command that runs one part, with the options that this one was given."""
    shared = ["--quick"] if given.quick else []
    for name in ("batch", "dtype", "modes"):
        if getattr(given, name):
            shared += [f"--{name}", ",".join(map(str, getattr(given, name)))]
    for name in ("rounds", "workers", "patience"):
        if getattr(given, name) is not None:
            shared += [f"--{name}", str(getattr(given, name))]

    def command(part: str, piece: Path) -> list[str]:
        start = [sys.executable, "-m", "benchmarks.gpu", "--parts", part, "--piece", str(piece)]
        return start + shared

    return command


def _header(options: Options) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    return {
        **report.origin(),
        "device": properties.name,
        "memory_bytes": properties.total_memory,
        "processors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "options": options.as_dict(),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=(gpu.__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="ten minutes: fewer checks, batch 16 in bfloat16")
    add("--parts", type=_parts, default=list(PARTS), help=f"of {','.join(PARTS)} (default: all)")
    add("--batch", type=_numbers, help="batch sizes of the throughput, for instance 1,16,64,256")
    add("--dtype", type=_words, help="of float32,tf32,bfloat16 (default: all)")
    add("--modes", type=_words, help=f"of torch.compile's modes (default: {','.join(MODES)})")
    add("--rounds", type=int, help="timed chains of each contender")
    add("--workers", type=int, help="contenders prepared side by side (3 GB of memory each)")
    add("--patience", type=float, help="seconds that a contender may take to prepare")
    add("--limit", type=float, help="seconds for all parts (default: 4 hours; 600 if quick)")
    add("--out", type=Path, help="JSON to write (default: benchmarks/results/gpu_<device>.json)")
    add("--piece", type=Path, help=argparse.SUPPRESS)
    return parser


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.split(",") if word)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in _words(text))


def _parts(text: str) -> list[str]:
    names = list(_words(text))
    if not names or set(names) - set(PARTS):
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(PARTS)}, got {text!r}")
    return names


if __name__ == "__main__":
    raise SystemExit(main())
