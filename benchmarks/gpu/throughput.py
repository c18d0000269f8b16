"""Ho's CIFAR-10 net with random weights: whole chains of ours and of diffusers, taking turns.

    images a second = batch / (1000 · time of a step)

Each contender has a process of its own: they are prepared side by side, as torch.compile takes
minutes for some, and then one at a time draws.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from benchmarks import timing, turns
from benchmarks.gpu import ceilings, contenders
from benchmarks.gpu.contenders import EAGER, OURS, compiled_name
from benchmarks.gpu.options import Options
from benchmarks.gpu.traffic import Traffic, flop_of
from benchmarks.turns import Ended, Worker
from benchmarks.worker import Prepared
from fastddpm.kernels.ancestral_step.cases import Case, NetworkInput
from fastddpm.unet import PackedUNet

CHAIN = 1000
# Of each contender that compiles.
COMPILE_THREADS = 4


class Group(NamedTuple):
    """What contenders are compared in."""

    dtype: str
    batch: int

    def __str__(self) -> str:
        return f"{self.dtype} batch {self.batch}"


def run(options: Options) -> Iterator[tuple[str, Any]]:
    """Yields ("DTYPE batch B", figures) for each, and before them the ceilings they are held to."""
    rival = contenders.rival_network()
    most = {"bytes_per_second": ceilings.bytes_per_second()["median"]}
    limits: dict[str, dict[str, float]] = {}
    for dtype in options.dtypes:
        flop = ceilings.flop_per_second(dtype)["median"]
        limits[dtype] = most | {"flop_per_second": flop}
        yield f"ceilings {dtype}", limits[dtype]
    torch.cuda.empty_cache()
    groups = [Group(dtype, batch) for dtype in options.dtypes for batch in options.batches]
    for wave in waves(groups, options):
        with prepared(wave, options) as workers:
            for group in wave:
                figures = measured(workers[group], group.batch, options.rounds)
                if OURS in figures["contenders"] and "step_ms" in figures["contenders"][OURS]:
                    step_ms = figures["contenders"][OURS]["step_ms"]["median"]
                    figures |= shares(rival, group.batch, group.dtype, step_ms, limits[group.dtype])
                print(f"{group}: {_spoken(figures)}", flush=True)
                yield str(group), figures


def names(options: Options) -> list[str]:
    """The contenders'."""
    return [OURS, EAGER, *(compiled_name(mode) for mode in options.modes)]


def waves(groups: Sequence[Group], options: Options) -> list[Sequence[Group]]:
    """The groups in parts whose contenders are prepared side by side."""
    size = max(options.workers // len(names(options)), 1)
    return [groups[first : first + size] for first in range(0, len(groups), size)]


@contextmanager
def prepared(
    groups: Sequence[Group],
    options: Options,
    prepare: Callable[..., Prepared] = contenders.prepare,
    path: str = "",
) -> Iterator[dict[Group, dict[str, Worker | Ended]]]:
    """Each group's contenders, prepared, or how those ended that could not be.

    prepare, path: see ``benchmarks.turns.worker``.
    """
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(COMPILE_THREADS))
    wanted = [(group, name) for group in groups for name in names(options)]
    # A worker ends with the thread that has started it: the pool lives as long as they do.
    with ExitStack() as stack, ThreadPoolExecutor(len(wanted)) as pool:

        def start(group: Group, name: str) -> Worker | Ended:
            given = {"name": name, "rounds": options.rounds, **group._asdict()}
            context = turns.worker(prepare, path, options.patience, **given)
            try:
                return stack.enter_context(context)
            except Ended as error:
                return error

        started = pool.map(lambda one: start(*one), wanted)
        found: dict[Group, dict[str, Worker | Ended]] = {group: {} for group in groups}
        for (group, name), worker in zip(wanted, started, strict=True):
            found[group][name] = worker
        yield found
        stack.close()


def measured(workers: Mapping[str, Worker | Ended], batch: int, rounds: int) -> dict[str, Any]:
    """The figures of every contender, and the ratios to ours."""
    figures: dict[str, Any] = {
        name: {"error": str(worker)} if isinstance(worker, Ended) else worker.found
        for name, worker in workers.items()
    }
    alive = {name: worker for name, worker in workers.items() if isinstance(worker, Worker)}
    answers, ended, _ = turns.interleaved(alive, rounds)
    for name, step_ms in answers.items():
        figures[name] = figures[name] | speed(step_ms, batch)
    profiles, broken, _ = turns.interleaved({name: alive[name] for name in answers}, 1)
    for name, (profile,) in profiles.items():
        figures[name] |= profile
    for name, error in {**ended, **broken}.items():
        figures[name] = figures[name] | {"error": error}
    result: dict[str, Any] = {"contenders": figures}
    return result | compared(answers) if OURS in answers else result


def speed(step_ms: list[float], batch: int) -> dict[str, Any]:
    """Milliseconds a step, and images a second for the whole chain at the median."""
    summary = timing.summary(step_ms)
    return {"step_ms": summary, "images_per_second": batch / (CHAIN * summary["median"] / 1e3)}


def compared(of_step: dict[str, list[float]]) -> dict[str, Any]:
    """How many times faster ours is than each, and which setting of torch.compile is the best."""
    ratios = {
        name: timing.ratio(of_step[OURS], samples)
        for name, samples in of_step.items()
        if name != OURS
    }
    tuned = [name for name in ratios if name != EAGER]
    best = min(tuned, key=lambda name: ratios[name]["median"], default=None)
    return {"times_faster_than": ratios, "best_compiled": best}


def shares(
    rival: nn.Module, batch: int, dtype: str, step_ms: float, limits: dict[str, float]
) -> dict[str, Any]:
    """What our step computes and moves, as shares of what the device can do in its time."""
    flop, moved = work(rival, batch, dtype)
    seconds = step_ms / 1e3
    return {
        "flop_per_step": flop,
        "bytes_per_step": moved,
        "share_of_flop_ceiling": flop / seconds / limits["flop_per_second"],
        "share_of_memory_ceiling": moved / seconds / limits["bytes_per_second"],
    }


def work(
    rival: nn.Module, batch: int, dtype: str, device: torch.device | str = "cuda"
) -> tuple[int, int]:
    """FLOP and bytes of one step: the network as it is sampled with, and the reverse step."""
    unet, kind = contenders.our_network(rival), contenders.dtype_of(dtype)
    packed = PackedUNet(unet, device, kind)
    channels, size = unet.config.in_channels, unet.config.size or ()
    x = torch.zeros(batch, packed.input_channels, *size, dtype=kind, device=device)
    if packed.channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    t = torch.zeros(batch, dtype=torch.int64, device=device)
    rows = packed.time_rows(t[:1]).expand(batch, -1)
    with torch.no_grad(), Traffic() as traffic:
        packed.denoise(x, rows, t)
    step = Case(
        "step",
        (batch, channels, *size),
        draws=True,
        output=kind,
        network=NetworkInput(kind, packed.input_channels, True),
        wants_x_0=False,
    )
    flop = flop_of(lambda: packed.denoise(x, rows, t))
    return flop, traffic.bytes + step.bytes_moved()


def _spoken(figures: dict[str, Any]) -> str:
    parts = []
    for name, found in figures["contenders"].items():
        said = f"{found['step_ms']['median']:.3f} ms" if "step_ms" in found else "failed"
        parts.append(f"{name} {said}")
    return ", ".join(parts)
