"""Where each millisecond of a step goes: every instruction of the captured program, timed.

An instruction's time is the least of many steps, so that what neighbours add on a busy machine is
left out; the medians of whole steps stand beside them. Lost is what the next gain can come from:

    lost = time − FLOP executed / measured peak

with the bytes a second that a layer moves beside it, for those that memory bounds.

Run: python -m benchmarks.profile_cpu [--network cifar10] [--batch 1,4,16] [--threads N]
Prints tables of kinds, of layers and of those that lose most, for each batch; writes
benchmarks/results/cpu_profile.json.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import origin, timing
from benchmarks.cpu import machine, networks, peak, program, work
from benchmarks.cpu.contenders import Setup
from fastddpm.engine.cpu_program import CpuRunner
from fastddpm.ops.program_abi import Layout, Step

RESULT = origin.RESULTS / "cpu_profile.json"
# Instructions that are no part of the network: its input and output change layout, the step.
OUTSIDE = (Layout, Step)
# Layers in the table of lost time.
MOST_LOST = 10


def profiled(runner: CpuRunner, rounds: int, ceiling: float) -> dict[str, Any]:
    """The least time of each instruction over so many steps, and their sums.

    ceiling: FLOP a second, that shares are given of.
    """
    state = torch.randn(runner.plan.shape)
    taken = torch.stack([runner.profile(state, 1) for _ in range(rounds)])
    milliseconds = (1e3 * taken.amin(dim=0)).tolist()
    rows = [
        {
            "kind": type(arguments).__name__,
            "layer": work.described(arguments),
            "ms": ms,
            "flop": work.flop(arguments),
            "bytes": work.bytes_moved(arguments),
            "lost_ms": ms - 1e3 * work.flop(arguments) / ceiling,
            "outside": isinstance(arguments, OUTSIDE),
        }
        for arguments, ms in zip(runner.code, milliseconds, strict=True)
    ]
    total = sum(milliseconds)
    flop = sum(row["flop"] for row in rows)
    return {
        "step_ms": total,
        "whole_step_ms": timing.summary((1e3 * taken.sum(dim=1)).tolist()),
        "executed_flop": flop,
        "executed_flop_per_second": flop / (total / 1e3),
        "executed_share_of_peak": flop / (total / 1e3) / ceiling,
        "share_outside_of_the_network": sum(r["ms"] for r in rows if r["outside"]) / total,
        "kinds": _summed(rows, total, ceiling, "kind"),
        "layers": _summed(rows, total, ceiling, "kind", "layer"),
        "instructions": rows,
    }


def _summed(
    rows: list[dict[str, Any]], total: float, ceiling: float, *keys: str
) -> list[dict[str, Any]]:
    """One row for all that agree in the keys, the longest first."""
    groups = defaultdict(list)
    for row in rows:
        groups[tuple(row[key] for key in keys)].append(row)
    summed = []
    for names, group in groups.items():
        ms, lost, flop, moved = (
            sum(row[key] for row in group) for key in ("ms", "lost_ms", "flop", "bytes")
        )
        rate, bandwidth = (1e3 * count / ms if ms else 0.0 for count in (flop, moved))
        figures = {"count": len(group), "ms": ms, "share": ms / total, "lost_ms": lost}
        figures |= {"flop_per_second": rate, "of_peak": rate / ceiling}
        figures["bytes_per_second"] = bandwidth
        summed.append(dict(zip(keys, names, strict=True)) | figures)
    return sorted(summed, key=lambda row: -row["ms"])


def table(profile: dict[str, Any], part: str = "layers") -> str:
    """The kinds or the layers of a profile in Markdown."""
    lines = ["| instruction | layer | × | ms | share | GFLOP/s | of peak |"]
    lines += ["|---|---|---:|---:|---:|---:|---:|"]
    for row in profile[part]:
        rate = f"{row['flop_per_second'] / 1e9:.0f}" if row["flop_per_second"] else ""
        of_peak = f"{row['of_peak']:.0%}" if row["flop_per_second"] else ""
        cells = [row["kind"], row.get("layer", ""), str(row["count"]), f"{row['ms']:.3f}"]
        lines.append("| " + " | ".join([*cells, f"{row['share']:.1%}", rate, of_peak]) + " |")
    return "\n".join(lines)


def lost_table(profile: dict[str, Any]) -> str:
    """The layers that lose most time, in Markdown."""
    lines = [f"| of {profile['step_ms']:.2f} ms lost | layer | × | lost ms | share | GB/s |"]
    lines += ["|---|---|---:|---:|---:|---:|"]
    for row in sorted(profile["layers"], key=lambda row: -row["lost_ms"])[:MOST_LOST]:
        share = f"{row['lost_ms'] / profile['step_ms']:.1%}"
        speed = f"{row['bytes_per_second'] / 1e9:.1f}" if row["bytes_per_second"] else ""
        cells = [row["kind"], row["layer"], str(row["count"]), f"{row['lost_ms']:.3f}"]
        lines.append("| " + " | ".join([*cells, share, speed]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Profile, print, write."""
    given = _arguments()
    torch.set_num_threads(given.threads)
    result: dict[str, Any] = {**origin.described(), "machine": machine.described(given.threads)}
    result["profiles"] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        networks.write(given.network, folder / "network")
        measure = peak.built(folder, machine.isa(), given.threads)
        for batch in given.batch:
            setup = Setup(folder / "network", batch, given.threads)
            runner = program.captured(setup, given.weights, given.memory)
            ceiling = statistics.median(measure().flop_per_second for _ in range(5))
            profile = profiled(runner, given.rounds, ceiling)
            name = f"{given.network}, batch {batch}, weights {given.weights}, {given.memory}"
            result["profiles"][name] = profile
            print(
                f"\n{name}: {profile['step_ms']:.2f} ms a step, "
                f"{profile['executed_share_of_peak']:.1%} of the peak\n"
            )
            print(table(profile, "kinds"), table(profile), lost_table(profile), sep="\n\n")
    if given.out:
        origin.write(given.out, result)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--network", choices=networks.NAMES, default="cifar10")
    add("--batch", type=_numbers, default=[1, 4, 16], help="for instance 1,16")
    add("--threads", type=int, default=torch.get_num_threads())
    add("--weights", default="float32", help="float32 or float16")
    add("--memory", default="small", help="small or speed")
    add("--rounds", type=int, default=20, help="steps; each instruction's least time counts")
    add("--out", type=Path, default=RESULT, help="JSON to write")
    return parser.parse_args()


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


if __name__ == "__main__":
    main()
