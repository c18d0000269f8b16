"""torch_normal: torch's own draws, bit for bit, and the state that they leave in the generator."""

from __future__ import annotations

import contextlib
import gc
import itertools
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from op_backends import ISAS, LIBRARY, instruction_set, needs_library, same_bits
from torch import Tensor

from fastddpm.kernels.torch_normal.cases import CASES, Case
from fastddpm.ops import torch_normal

pytestmark = [needs_library, pytest.mark.usefixtures("fresh_memory_is_nan")]
# What this torch draws by the arithmetic that the kernel repeats: where it has AVX2.
FAST = [isa for isa in ISAS if isa != "baseline"]
needs_avx2 = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"),
    reason="torch draws other normals without AVX2",
)


def generators(case: Case) -> tuple[torch.Generator, torch.Generator]:
    both = tuple(torch.Generator().manual_seed(case.seed) for _ in range(2))
    for generator in both:
        torch.rand(case.before, generator=generator)
    return both


@needs_avx2
@pytest.mark.parametrize("isa", FAST)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_is_torchs_draw_bit_for_bit(case: Case, isa: str) -> None:
    own, theirs = generators(case)
    with instruction_set(isa):
        assert torch_normal.unsupported() == []
        # Several draws of one generator, with torch's own between them.
        for _ in range(3):
            found = torch_normal.randn(case.shape, own)
            assert same_bits(found, torch.randn(case.shape, generator=theirs))
            assert torch.equal(own.get_state(), theirs.get_state())
            assert torch.equal(torch.rand(7, generator=own), torch.rand(7, generator=theirs))


@needs_avx2
def test_it_is_the_library_that_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch_normal.unsupported() == []
    monkeypatch.setattr(torch, "randn", lambda *a, **k: pytest.fail("torch has drawn"))
    torch_normal.randn((16,), torch.Generator())


@pytest.mark.parametrize("shape", [(), (0,), (3,), (3, 5), (2, 3, 4, 5)])
@pytest.mark.parametrize("isa", ISAS)
def test_what_the_kernel_cannot_draw_is_torchs(shape: tuple[int, ...], isa: str) -> None:
    own, theirs = (torch.Generator().manual_seed(9) for _ in range(2))
    with instruction_set(isa):
        found = torch_normal.randn(shape, own)
    assert same_bits(found, torch.randn(shape, generator=theirs))
    assert torch.equal(own.get_state(), theirs.get_state())


@needs_avx2
def test_a_torch_that_draws_otherwise_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    own = torch.randn

    def rounded_otherwise(*shape: object, **settings: object) -> torch.Tensor:
        drawn = own(*shape, **settings)
        drawn.view(-1).view(torch.int32)[-1] += 1
        return drawn

    monkeypatch.setattr(torch, "randn", rounded_otherwise)
    trial = torch_normal._differences.__wrapped__
    assert trial(LIBRARY.isa) == [f"this torch draws other normals than the {LIBRARY.isa} kernel"]
    monkeypatch.setattr(torch_normal, "_differences", trial)
    # And torch draws.
    same = (torch.Generator().manual_seed(2) for _ in range(2))
    a, b = (
        draw((32,), generator=g)
        for draw, g in zip((torch_normal.randn, torch.randn), same, strict=True)
    )
    assert same_bits(a, b)


def test_the_default_dtype_changes_nothing(other_default_dtype: torch.dtype) -> None:
    a, b = (torch.Generator().manual_seed(1) for _ in range(2))
    found = torch_normal.randn((64,), a)
    assert same_bits(found, torch.randn(64, generator=b, dtype=torch.float32))


def test_a_state_that_cannot_be_is_refused() -> None:
    state, out = torch.zeros(5056, dtype=torch.uint8), torch.empty(16)
    with pytest.raises(RuntimeError, match="invalid argument"):
        LIBRARY.call("fastddpm_torch_normal", out.data_ptr(), 16, state.data_ptr())
    good = torch.Generator().get_state()
    for count in (-1, 0, 15):
        with pytest.raises(RuntimeError, match="invalid argument"):
            LIBRARY.call("fastddpm_torch_normal", out.data_ptr(), count, good.data_ptr())


# ---- torch's default generator

DRAW = (512,)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that other tests have left, which wait, count as quiet."""
    own = torch_normal._quiet_threads
    others = sys._current_frames().keys() - {threading.get_ident()}
    monkeypatch.setattr(torch_normal, "_quiet_threads", lambda: [*own(), *others])


@pytest.fixture
def default_generator(alone: None) -> Iterator[torch.Generator]:
    """torch's own, as it was afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        yield torch.default_generator


@pytest.fixture
def between(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], list[int]]:
    """between(event): the next native draw is interrupted by it, once its numbers are made.

    Returned: one entry for each native draw that has begun.
    """
    own, begun = torch_normal._drawn, []

    def interrupt(event: Callable[[], object]) -> list[int]:
        def drawn(shape: tuple[int, ...], state: Tensor) -> Tensor:
            begun.append(len(begun))
            numbers = own(shape, state)
            if len(begun) == 1:
                event()
            return numbers

        monkeypatch.setattr(torch_normal, "_drawn", drawn)
        return begun

    return interrupt


def sequence(count: int, seed: int = 5) -> list[bytes]:
    """What torch draws, one after the other."""
    generator = torch.Generator().manual_seed(seed)
    return [bits(torch.randn(DRAW, generator=generator)) for _ in range(count)]


def bits(drawn: Tensor) -> bytes:
    return drawn.numpy().tobytes()


def ours() -> bytes:
    return bits(torch_normal.randn(DRAW, torch.default_generator))


def theirs() -> bytes:
    return bits(torch.randn(DRAW))


@needs_avx2
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_torchs_default_generator(case: Case, alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    _, expected = generators(case)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case.seed)
        torch.rand(case.before)
        wanted = torch.randn(case.shape, generator=expected)
        monkeypatch.setattr(torch, "randn", lambda *a, **k: pytest.fail("torch has drawn"))
        found = torch_normal.randn(case.shape, torch.default_generator)
        assert same_bits(found, wanted)
        assert torch.equal(torch.default_generator.get_state(), expected.get_state())


@needs_avx2
@pytest.mark.parametrize("other", [ours, theirs])
def test_a_draw_that_comes_between_is_noticed(
    other: Callable[[], bytes], default_generator: torch.Generator, between: Callable[..., list]
) -> None:
    came: list[bytes] = []
    begun = between(lambda: came.append(other()))
    found = ours()
    assert [*came, found, theirs()] == sequence(3)
    # The first was in vain.
    assert len(begun) == (3 if other is ours else 2)


@needs_avx2
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers")
def test_signal_handlers_that_draw(default_generator: torch.Generator) -> None:
    """Handlers run between two bytecodes of a draw, wherever that may be."""
    found = [ours()]
    times = [time.perf_counter()]
    for _ in range(100):
        found.append(ours())
        times.append(time.perf_counter())
    # A median, as one stall would make the handlers rare.
    draws = [after - before for before, after in itertools.pairwise(times)]
    interval = 5 * statistics.median(draws)
    inside = 0

    def draw(*_: object) -> None:
        """At most three deep: where the machine is busy, draws outlast the interval."""
        nonlocal inside
        if inside == 3:
            return
        inside += 1
        found.append(ours())
        inside -= 1

    before = signal.signal(signal.SIGALRM, draw)
    try:
        signal.setitimer(signal.ITIMER_REAL, interval, interval)
        for _ in range(3000):
            found.append(ours())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(found) > 3101 + 300
    assert sorted(found) == sorted(sequence(len(found)))


@needs_avx2
def test_a_thread_that_starts_meanwhile_is_noticed(
    default_generator: torch.Generator, between: Callable[..., list]
) -> None:
    """It may be inside of torch's draw, which nobody sees: torch draws here, too."""
    leave = threading.Event()
    thread = threading.Thread(target=leave.wait)
    begun = between(thread.start)
    found = [ours(), ours()]
    leave.set()
    thread.join()
    found.append(ours())
    assert found == sequence(3)
    # In vain, by torch, by us.
    assert len(begun) == 2


@needs_avx2
def test_a_progress_bar_is_no_such_thread(
    default_generator: torch.Generator, between: Callable[..., list]
) -> None:
    tqdm = pytest.importorskip("tqdm")

    class Bar(tqdm.tqdm):  # type: ignore[misc, name-defined]
        """With a monitor of its own."""

        monitor_interval = 0.01

    begun = between(lambda: None)
    with contextlib.closing(Bar(range(3), disable=False)):
        assert type(Bar.monitor).__name__ == "TMonitor" and Bar.monitor.is_alive()
        assert ours() == sequence(1)[0]
    Bar.monitor.exit()
    assert len(begun) == 1


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_threads_draw_what_torch_draws_in_some_order(
    workers: int, default_generator: torch.Generator
) -> None:
    """Some through torch, and at times this thread is the only one."""
    gc.collect()
    found: list[bytes] = []
    for _ in range(20):
        with ThreadPoolExecutor(workers) as pool:
            drawn = [pool.submit((ours, theirs)[k % 2]) for k in range(8)]
            found += [ours() for _ in range(8)]
            found += [one.result() for one in drawn]
        found += [ours(), theirs()]
        time.sleep(0)
    assert sorted(found) == sorted(sequence(len(found)))
    assert len(set(found)) == len(found)
