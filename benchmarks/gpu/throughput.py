"""Ho's CIFAR-10 net with random weights: whole chains of ours and of diffusers, taking turns.

images a second = batch / (1000 · time of a step)
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from benchmarks import timing
from benchmarks.gpu import ceilings, contenders, profiling
from benchmarks.gpu.contenders import EAGER, OURS, Draw, compiled_name
from benchmarks.gpu.options import Options
from benchmarks.gpu.traffic import Traffic, flop_of
from fastddpm.kernels.ancestral_step.cases import Case, NetworkInput
from fastddpm.sampler import Sampler
from fastddpm.unet import PackedUNet

CHAIN = 1000


def run(options: Options) -> Iterator[tuple[str, Any]]:
    """Yields ("DTYPE batch B", figures) for each, and before them the ceilings they are held to."""
    rival = contenders.rival_network()
    most = {"bytes_per_second": ceilings.bytes_per_second()["median"]}
    for dtype in options.dtypes:
        flop = ceilings.flop_per_second(dtype)["median"]
        limits = most | {"flop_per_second": flop}
        yield f"ceilings {dtype}", limits
        for batch in options.batches:
            with contenders.precision_of(dtype):
                figures = measured(rival, batch, dtype, options, limits)
            print(f"{dtype} batch {batch}: {_spoken(figures)}", flush=True)
            yield f"{dtype} batch {batch}", figures
            torch.compiler.reset()
            gc.collect()
            torch.cuda.empty_cache()


def measured(
    rival: nn.Module, batch: int, dtype: str, options: Options, limits: dict[str, float]
) -> dict[str, Any]:
    """The figures of every contender, the ratios to ours, and our shares of the ceilings."""
    steps = options.steps
    figures: dict[str, Any] = {}
    draws: dict[str, Draw] = {}
    samplers: list[Sampler] = []
    for name, make in _makers(rival, batch, dtype, options, samplers).items():
        figures[name], draw = prepared(make)
        if draw is not None:
            draws[name] = draw
    for sampler in samplers:
        figures[OURS]["ran"] = sampler.explain().splitlines()
    times = timing.interleaved(draws, options.rounds, timing.cuda_milliseconds)
    of_step = {name: [time / steps for time in samples] for name, samples in times.items()}
    for name, samples in of_step.items():
        figures[name] |= speed(samples, batch) | profiling.launches(draws[name], steps)
    result: dict[str, Any] = {"contenders": figures}
    if OURS in of_step:
        result |= compared(of_step)
        result |= shares(rival, batch, dtype, figures[OURS]["step_ms"]["median"], limits)
    return result


def _makers(
    rival: nn.Module, batch: int, dtype: str, options: Options, samplers: list[Sampler]
) -> dict[str, Callable[[], Draw]]:
    given = (rival, batch, dtype, options.steps)

    def ours() -> Draw:
        sampler, draw = contenders.ours(*given)
        samplers.append(sampler)
        return draw

    makers: dict[str, Callable[[], Draw]] = {
        OURS: ours,
        EAGER: lambda: contenders.eager(*given),
    }
    for mode in options.modes:
        makers[compiled_name(mode)] = lambda mode=mode: contenders.compiled(*given, mode)
    return makers


def prepared(make: Callable[[], Draw]) -> tuple[dict[str, Any], Draw | None]:
    """A contender after two draws, and the memory it took; or its error, and nothing to run."""
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    try:
        draw = make()
        finite = all(bool(draw().isfinite().all()) for _ in range(2))
    # What compiling, capturing and a full memory raise; the others still run.
    except (RuntimeError, ValueError) as error:
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}, None
    peak = torch.cuda.max_memory_allocated() - before
    return {"peak_memory_bytes": peak, "finite": finite}, draw


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
