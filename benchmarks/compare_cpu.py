"""Our CPU engine beside torch, ONNX Runtime, OpenVINO and MNN, in one command and one JSON file.

For each network and batch, in a process of its own:

    calls    a call of the network: every library at its best setting, taking turns; the ratio of
             ours to each, round by round; GFLOP a second and the share of the measured peak
    step     a step of the chain, as a user waits for it: our sampler, and each rival's network in
             the cheapest loop of plain torch (cpu/chain.py)
    program  what our program executes, and what it spends outside of the network
    memory   at the largest batch

``--what network`` measures calls alone, ``--what step`` steps, without ``--what`` both; which
setting of a library is its best is told by calls in any case.

Each contender has a process of its own, which is stopped outside of its turns: threads that spin
after a call would take the cores of the next (benchmarks/turns.py). A turn counts if the
machine's peak was all there before and after it (benchmarks/cpu/steady.py).

Run: python -m benchmarks.compare_cpu [--networks cifar10,mnist] [--batch 1,4,16] [--threads N]
Writes benchmarks/results/cpu_<instruction set>.json. Rivals come with `pip install -e '.[bench]'`;
those that are not installed, or end, are named with the reason. MNN's wheel has no AVX-512
instructions: MNN_AVX512=FOLDER in the environment adds a build that has (cpu/onnx_rivals.py).
A wrong output, or an end of ours, ends its part.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks import origin, parts, timing
from benchmarks.cpu import (
    chain,
    contenders,
    machine,
    measure,
    memory,
    networks,
    onnx_rivals,
    peak,
    program,
)
from benchmarks.cpu.contenders import OURS, Contender, Setup
from benchmarks.cpu.steady import Steady
from benchmarks.profile_cpu import profiled
from benchmarks.turns import Ended, worker

BATCHES = {"cifar10": (1, 4, 16), "mnist": (1, 16, 64)}
WHAT = ("network", "step")
# Where peak memory is measured.
MEMORY_BATCH = 16
PACKAGES = ("onnx", "onnxscript", "onnxruntime", "openvino", "MNN")
# Seconds for all parts.
LIMIT = 4 * 3600.0


def measured(given: argparse.Namespace, name: str, batch: int) -> Iterator[tuple[str, Any]]:
    """Yields (section, figures) of one network and batch."""
    with tempfile.TemporaryDirectory() as temporary:
        setup = Setup(Path(temporary) / "network", batch, given.threads)
        networks.write(name, setup.folder)
        networks.write_expected(setup.folder, batch)
        asked = [one for one in contenders.all_contenders() if _wanted(one.name, given)]
        with _steady(setup) as steady, ExitStack() as running:
            trial = measure.best_settings(setup, asked, given.clock, running, steady)
            yield "absent", trial.absent
            yield "settings_ms", trial.setting_ms
            measure.require([OURS], trial.chosen, {OURS: str(trial.absent)})
            if "network" in given.what:
                found = measure.measured(setup, trial.chosen, steady, given.rounds)
                yield "calls", found
                print(table(f"a call of {name}, batch {batch}", found), flush=True)
            ceiling = steady.figures()["peak_flop_per_second"]["median"]
        if "step" in given.what:
            steps = _steps(setup, trial, given)
            yield "step", steps
            print(step_table(f"a step of {name}, batch {batch}", steps), flush=True)
        yield "program", _program(setup, trial.chosen[OURS].contender, given.rounds, ceiling)
        if batch == MEMORY_BATCH:
            yield "memory", _memory(setup, asked, trial.setting_ms)


@contextmanager
def _steady(setup: Setup) -> Iterator[Steady]:
    folder, isa = str(setup.folder), machine.isa()
    with worker(peak.prepared, folder=folder, isa=isa, threads=setup.threads) as looks:
        yield Steady(looks)


def _steps(setup: Setup, trial: measure.Trial, given: argparse.Namespace) -> dict[str, Any]:
    chosen = [one.contender for one in trial.chosen.values()]
    with _steady(setup) as steady:
        rounds = given.steps, given.chain_rounds, given.clock
        return chain.measured(setup, chosen, *rounds, steady)


def _program(setup: Setup, ours: Contender, rounds: int, ceiling: float) -> dict[str, Any]:
    profile = profiled(program.captured(setup, **ours.options), rounds, ceiling)
    return {key: value for key, value in profile.items() if key not in ("instructions", "layers")}


def _memory(setup: Setup, asked: list[Contender], present: dict[str, Any]) -> dict[str, Any]:
    """By label the memory of all settings that have run."""
    found: dict[str, Any] = {}
    for one in (one for one in asked if one.label in present):
        try:
            found[one.label] = memory.taken(setup, one)
        except Ended as error:
            found[one.label] = {"absent": str(error)}
    return found


def _wanted(name: str, given: argparse.Namespace) -> bool:
    no_switch = given.isa == "avx2" and name == "ONNX Runtime"
    return not no_switch and (not given.only or name in given.only or name.startswith(OURS))


def table(title: str, calls: dict[str, Any]) -> str:
    """A part's calls in Markdown; the ratio is that of ours in float32."""
    ratios = calls["times_faster_than"].get(OURS, {})
    lines = [
        f"| {title} | ms | quartiles | GFLOP/s | of peak | error | × ours |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, found in calls["contenders"].items():
        ms, rate = found["call_ms"], found["effective_flop_per_second"] / 1e9
        cells = [f"{ms['median']:.2f}", f"{ms['low']:.2f} to {ms['high']:.2f}", f"{rate:.0f}"]
        cells += [f"{found['effective_share_of_peak']:.0%}", f"{found['relative_error']:.1e}"]
        cells.append(f"{ratios[name]['median']:.2f}" if name in ratios else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    disturbed = (found["disturbed_turns"] for found in calls["contenders"].values())
    return "\n".join(lines + _busy(disturbed)) + "\n"


def step_table(title: str, found: dict[str, Any]) -> str:
    """A part's steps in Markdown, as ``table`` has its calls."""
    ratios = found["times_faster_than"].get(OURS, {})
    lines = [f"| {title} | ms | quartiles | × ours |", "|---|---:|---:|---:|"]
    for name, ms in found["step_ms"].items():
        ratio = f"{ratios[name]['median']:.2f}" if name in ratios else ""
        spread = f"{ms['low']:.2f} to {ms['high']:.2f}"
        lines.append(f"| {name} | {ms['median']:.2f} | {spread} | {ratio} |")
    return "\n".join(lines + _busy(found["disturbed_turns"].values())) + "\n"


def _busy(disturbed: Iterable[int]) -> list[str]:
    """The line below a table whose turns had not all of the machine."""
    count = sum(disturbed)
    return [f"\nThe machine was busy: {count} turns never had all of it."] if count else []


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0 if every part ran and every output was right, else 1."""
    given = _parser().parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    if given.isa == "avx2":
        os.environ.update(machine.AVX2)
    if given.piece is not None:
        # Workers compute; this process only waits, and must have no threads that spin.
        torch.set_num_threads(1)
        name, batch = given.part.rsplit("_", 1)
        parts.write_piece(measured(given, name, int(batch)), given.piece)
        return 0
    out = given.out or origin.RESULTS / f"cpu_{given.isa or machine.isa()}.json"
    names = [f"{name}_{batch}" for name in given.networks for batch in given.batch or BATCHES[name]]
    result = parts.run_all(names, _command(given), out, _header(given), LIMIT)
    print(f"written: {out}")
    return 0 if all("error" not in part for part in result["parts"].values()) else 1


def _command(given: argparse.Namespace) -> Callable[[str, Path], list[str]]:
    """The command that measures one part, with the options that this one was given."""
    shared = ["--what", ",".join(given.what)]
    shared += ["--threads", given.threads, "--rounds", given.rounds, "--steps", given.steps]
    shared += ["--chain-rounds", given.chain_rounds, "--clock", given.clock]
    shared += ["--isa", given.isa] if given.isa else []
    shared += ["--only", ",".join(given.only)] if given.only else []

    def command(part: str, piece: Path) -> list[str]:
        start = [sys.executable, "-m", "benchmarks.compare_cpu", "--part", part]
        return [*start, "--piece", str(piece), *map(str, shared)]

    return command


def _header(given: argparse.Namespace) -> dict[str, Any]:
    header = origin.described()
    header["versions"] |= {name: origin.version(name) for name in PACKAGES}
    header["versions"]["MNN with AVX-512"] = onnx_rivals.mnn_avx512_version()
    names = ("what", "rounds", "steps", "chain_rounds", "clock", "isa")
    options = {name: getattr(given, name) for name in names}
    return {**header, "machine": machine.described(given.threads), "options": options}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare_cpu", description=(__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument
    add("--networks", type=_words, default=list(networks.NAMES), help="of cifar10,mnist")
    add("--what", type=_what, default=list(WHAT), help="network: a call; step: of a chain")
    add("--batch", type=_numbers, help="for instance 1,16 (default: 1,4,16 and 1,16,64)")
    add("--threads", type=int, default=torch.get_num_threads(), help="of every contender")
    add("--rounds", type=int, default=15, help="timed turns of each contender")
    add("--steps", type=int, default=50, help="timed steps of a chain, of the 1000")
    add("--chain-rounds", type=int, default=5, help="timed chains of each contender")
    add(
        "--clock",
        choices=timing.CLOCKS,
        default="wall",
        help="processor: for a busy machine, 1 thread",
    )
    add("--isa", choices=["avx2"], help="an instruction set below the machine's best, for all")
    add("--only", type=_words, default=[], help="rivals, for instance OpenVINO,MNN")
    add("--out", type=Path, help="JSON to write (default: benchmarks/results/cpu_<isa>.json)")
    add("--part", help=argparse.SUPPRESS)
    add("--piece", type=Path, help=argparse.SUPPRESS)
    return parser


def _what(text: str) -> list[str]:
    words = _words(text)
    if not words or set(words) - set(WHAT):
        raise argparse.ArgumentTypeError(f"expected some of {','.join(WHAT)}, got {text!r}")
    return words


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _numbers(text: str) -> list[int]:
    return [int(word) for word in _words(text)]


if __name__ == "__main__":
    raise SystemExit(main())
