"""Each kernel's bytes per second at the sizes of a large CIFAR-10 batch.

Bytes are the least that the call must move, from cases.py. A call runs on several sets of tensors
in turn, together larger than the cache, so what is measured is memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from benchmarks.gpu import ceilings
from benchmarks.gpu.options import Options
from benchmarks.timing import cuda_milliseconds, summary
from fastddpm import noise, ops
from fastddpm.kernels.ancestral_step import cases as step_cases
from fastddpm.kernels.group_norm_silu import cases as norm_cases
from fastddpm.kernels.normal import cases as normal_cases
from fastddpm.kernels.q_sample import cases as q_cases
from fastddpm.kernels.residual_sum import cases as sum_cases
from fastddpm.noise import Purpose
from fastddpm.ops.ancestral_step import step_in_place

# Images of the noise and step kernels, and of the network's.
BATCH, NETWORK_BATCH = 1024, 256
NORMS = ("cifar_32", "cifar_32_residual", "cifar_16_joined", "cifar_8", "cifar_4_joined")
SPLIT_NORMS = ("split_64",)
SUMS = ("cifar_32", "cifar_32_pad", "cifar_16_double")
NETWORK_DTYPE = torch.bfloat16
ROUNDS = 15
# The sets of tensors are together so many times as large as the cache; at least, in bytes.
CACHES, LEAST_CACHE = 4, 64 << 20
# A graph holds so many calls at least, so that its own launch does not count.
CALLS = 16


class Measured(NamedTuple):
    """A call to measure. make: allocates its tensors and returns it. bytes: the least it moves."""

    name: str
    make: Callable[[], Callable[[], object]]
    bytes: int


def run(options: Options) -> Iterator[tuple[str, Any]]:
    """Yields ("bytes_per_second", the ceiling), then (name, figures) of each call."""
    ceiling = ceilings.bytes_per_second()["median"]
    yield "bytes_per_second", ceiling
    for measured in calls():
        milliseconds = summary(times(measured))
        rate = measured.bytes / (milliseconds["median"] / 1e3)
        print(f"{measured.name}: {rate / 1e9:.0f} GB/s, {rate / ceiling:.0%}", flush=True)
        yield (
            measured.name,
            {
                "bytes": measured.bytes,
                "milliseconds": milliseconds,
                "bytes_per_second": rate,
                "share_of_bandwidth": rate / ceiling,
            },
        )


def times(measured: Measured) -> list[float]:
    """Milliseconds of one call, a graph of many replayed ROUNDS times."""
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    sets = copies(measured.bytes, cache)
    made = [measured.make() for _ in range(sets)]
    turns = -(-CALLS // sets)
    graph = _captured(made, turns)
    graph.replay()
    return [cuda_milliseconds(graph.replay) / (turns * sets) for _ in range(ROUNDS)]


def copies(bytes_moved: int, cache: int) -> int:
    """Sets of tensors, at least 1, that are together CACHES times as large as the cache."""
    return -(-CACHES * max(cache, LEAST_CACHE) // max(bytes_moved, 1))


def _captured(made: list[Callable[[], object]], turns: int) -> torch.cuda.CUDAGraph:
    """All calls, ``turns`` times in a row, after one uncaptured turn that compiles."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in made:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(turns):
            for call in made:
                call()
    return graph


def calls(
    batch: int = BATCH,
    network_batch: int = NETWORK_BATCH,
    device: str = "cuda",
    backend: str = "triton",
) -> list[Measured]:
    """The calls to measure; those of the network in bfloat16."""
    return [
        _normal(batch, device, backend),
        *_steps(batch, device, backend),
        _q_sample(batch, device, backend),
        *(_norm(name, network_batch, device, backend) for name in (*NORMS, *SPLIT_NORMS)),
        *(_sum(name, network_batch, device, backend) for name in SUMS),
    ]


def _normal(batch: int, device: str, backend: str) -> Measured:
    case = _named(normal_cases.CASES, "cifar")._replace(batch=batch)

    def make() -> Callable[[], object]:
        seed = noise.seed_tensor(case.seed, device)
        indices = torch.arange(batch, device=device)
        step = torch.tensor([case.step], device=device)
        settings = (case.shape, Purpose.REVERSE)
        return lambda: ops.normal(seed, indices, step, *settings, backend=backend)

    return Measured("normal", make, case.bytes_moved())


def _steps(batch: int, device: str, backend: str) -> Iterator[Measured]:
    """The step as the captured chain runs it, and with everything in float32."""
    for name, cases in (
        ("cifar_network", step_cases.NETWORK_CASES),
        ("cifar_draws", step_cases.CASES),
    ):
        case = _named(cases, name)
        case = case._replace(shape=(batch, *case.shape[1:]))

        def make(case: Any = case) -> Callable[[], object]:
            call = case.call(device=device)
            return lambda: step_in_place(call, backend)

        yield Measured(f"ancestral_step {name}", make, case.bytes_moved())


def _q_sample(batch: int, device: str, backend: str) -> Measured:
    case = _named(q_cases.CASES, "cifar")
    case = case._replace(shape=(batch, *case.shape[1:]))

    def make() -> Callable[[], object]:
        x_0 = torch.zeros(case.shape, dtype=torch.float32, device=device)
        t = torch.zeros(batch, dtype=torch.int64, device=device)
        table = torch.ones(1, 2, dtype=torch.float32, device=device)
        seed, indices = noise.seed_tensor(0, device), torch.arange(batch, device=device)
        return lambda: ops.q_sample(x_0, t, table, seed, indices, t[:1], backend=backend)

    return Measured("q_sample", make, case.bytes_moved())


def _norm(name: str, batch: int, device: str, backend: str) -> Measured:
    case = _named(norm_cases.CASES, name)
    case = case._replace(shape=(batch, *case.shape[1:]))

    def make() -> Callable[[], object]:
        given = case.tensors(NETWORK_DTYPE, device) | case.settings()
        return lambda: ops.group_norm_silu(**given, backend=backend)

    return Measured(f"group_norm_silu {name}", make, case.bytes_moved(NETWORK_DTYPE.itemsize))


def _sum(name: str, batch: int, device: str, backend: str) -> Measured:
    case = _named(sum_cases.CASES, name)
    case = case._replace(shape=(batch, *case.shape[1:]))

    def make() -> Callable[[], object]:
        given = case.tensors(NETWORK_DTYPE, device)
        if case.resample is None:
            return lambda: ops.residual_sum(**given, backend=backend)
        given |= {"resample": case.resample, "total": case.keep_total}
        return lambda: ops.resampled_sum(**given, backend=backend)

    return Measured(f"residual_sum {name}", make, case.bytes_moved(NETWORK_DTYPE.itemsize))


def _named(cases: Any, name: str) -> Any:
    return next(case for case in cases if case.name == name)
