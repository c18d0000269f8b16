"""torch.cuda on a machine without a GPU: streams, pools and graphs over CPU tensors.

``emulated()`` patches torch.cuda so that the code of a capture runs as it stands, torch.cuda.graph
included. It models what a capture is refused for, what a refused one leaves behind (torch 2.8 to
2.11: the allocator stays in the pool until it is told to stop) and the order of events, not
concurrency: streams only have names.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map_only

from capture.modes import DeviceMode, SyncMode, no_host_reads, raise_sync
from capture.recording import Recording, RecordMode, storage_of, tensors_of

SYNC_MODES = ("default", "warn", "error")


class Stream:
    """Named, not concurrent; waiting is an event."""

    def __init__(self, device: Device, name: str) -> None:
        self._device, self.name = device, name

    def wait_stream(self, other: Stream) -> None:
        self._device.note(f"{self.name} waits for {other.name}")

    def synchronize(self) -> None:
        self._device.refuse_while_capturing("Stream.synchronize")


class Pool:
    """A private pool of the allocator: how many graphs use it, and whether one is captured."""

    def __init__(self) -> None:
        self.graphs = 0
        self.allocating = False
        self.used = False


class Device:
    """The state that torch.cuda hides, and ``events``, what happened in order."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self._graphs: list[weakref.ref[Graph]] = []
        self.default = Stream(self, "default")
        self.stream = self.default
        self.pools: dict[tuple[int, int], Pool] = {}
        self.recording: Recording | None = None
        self.sync_mode = 0
        self.noting = False
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}
        self._streams = itertools.count(1)
        self._sync: ExitStack | None = None

    @property
    def graphs(self) -> list[Graph]:
        """Those that are still held, in the order in which they were made."""
        return [graph for held in self._graphs if (graph := held()) is not None]

    def note(self, event: str) -> None:
        self.events.append(event)

    def add(self, graph: Graph) -> None:
        self._graphs.append(weakref.ref(graph))

    @contextmanager
    def noting_ops(self) -> Iterator[None]:
        """Note every op that runs inside by itself, not in a replay."""
        self.noting = True
        yield
        self.noting = False

    def refuse_while_capturing(self, what: str) -> None:
        if self.recording is not None:
            self.recording.broken = what
            raise RuntimeError(f"operation not permitted when stream is capturing: {what}")
        self.note(what)

    # What takes the place of torch.cuda's functions.

    def new_stream(self, device: Any = None) -> Stream:
        return Stream(self, f"side {next(self._streams)}")

    @contextmanager
    def use_stream(self, stream: Stream) -> Iterator[None]:
        before, self.stream = self.stream, stream
        try:
            yield
        finally:
            self.stream = before

    def graph_pool_handle(self) -> tuple[int, int]:
        handle = (len(self.pools) + 1, 0)
        self.pools[handle] = Pool()
        return handle

    def empty_cache(self) -> None:
        if any(pool.allocating for pool in self.pools.values()):
            raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")

    def stop_allocating(self, device: Any, handle: tuple[int, int]) -> None:
        if not self.pools[handle].allocating:
            raise RuntimeError("not currently recording to mempool_id")
        self.pools[handle].allocating = False

    def memory_allocated(self, device: Any = None) -> int:
        """Bytes of the memory that ops have made and that is still held."""
        self.made = {key: held for key, held in self.made.items() if not held[0].expired()}
        return sum(size for _, size in self.made.values())

    def set_sync_mode(self, mode: int | str) -> None:
        self.sync_mode = SYNC_MODES.index(mode) if isinstance(mode, str) else mode
        if self._sync is not None:
            self._sync.close()
            self._sync = None
        if self.sync_mode == SYNC_MODES.index("error"):
            self._sync = ExitStack()
            self._sync.enter_context(no_host_reads(raise_sync))
            self._sync.enter_context(SyncMode())


class Graph:
    """torch.cuda.CUDAGraph."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._handle: tuple[int, int] | None = None
        self._modes = ExitStack()
        self.recording = Recording()
        device.add(self)

    def capture_begin(
        self, pool: tuple[int, int], capture_error_mode: str = "global", **options: Any
    ) -> None:
        device, shared = self._device, self._device.pools[pool]
        if device.stream is device.default:
            raise RuntimeError("CUDA graphs must be captured on a non-default stream")
        if device.recording is not None or shared.allocating:
            raise RuntimeError("beginAllocateToPool: already recording to mempool_id")
        if shared.used and shared.graphs == 0:
            raise RuntimeError("it->second->use_count > 0 INTERNAL ASSERT FAILED")
        shared.allocating = shared.used = True
        shared.graphs += 1
        self._handle = pool
        device.recording = self.recording
        device.note(f"capture on {device.stream.name}, pool {pool[0]}, {capture_error_mode}")
        self._modes.enter_context(no_host_reads(self._break))
        self._modes.enter_context(RecordMode(self.recording))

    def capture_end(self) -> None:
        self._modes.close()
        device = self._device
        device.recording = None
        self.recording.finish()
        device.note("capture ends")
        if self.recording.broken is not None:
            raise RuntimeError("operation failed due to a previous error during capture")
        assert self._handle is not None
        device.pools[self._handle].allocating = False

    def replay(self) -> None:
        if self.recording.broken is not None or self._handle is None:
            raise RuntimeError("Called CUDAGraph::replay without a preceding successful capture.")
        self._device.note("replay")
        self.recording.replay()

    def reset(self) -> None:
        if self._handle is not None:
            self._device.pools[self._handle].graphs -= 1
            self._handle = None

    def __del__(self) -> None:
        self.reset()

    def _break(self, what: str) -> None:
        self.recording.broken = what
        raise RuntimeError(f"operation not permitted when stream is capturing: {what}")


class _Opaque:
    """What torch.compile returned: while capturing one call whose inside is not seen.

    It is not run then, so its output must be known from the warm-up.
    """

    def __init__(self, device: Device, function: Callable[..., Any]) -> None:
        self._device, self._function = device, function
        self._last: Any = None

    def __call__(self, *args: Any) -> Any:
        recording = self._device.recording
        if recording is None:
            with _disable_current_modes():
                self._last = self._function(*args)
            return self._last
        if self._last is None:
            self._device.refuse_while_capturing("compiling")
        with _disable_current_modes():
            # What is an argument comes back as one, everything else is new memory.
            own = {id(argument): argument for argument in args}
            outputs = tree_map_only(
                Tensor, lambda t: own[id(t)] if id(t) in own else torch.empty_like(t), self._last
            )
        inputs = {storage_of(tensor)._cdata for tensor in tensors_of(args)}
        recording.add(self._function, args, {}, outputs, inputs)
        return outputs


@contextmanager
def emulated(compile: Callable[..., Any] | None = None) -> Iterator[Device]:
    """torch.cuda as above, for tensors on the CPU.

    compile: what compiles a step in place of torch.compile; None leaves the step as it is. What it
             returns is one opaque call to a capture.
    """
    device = Device()

    def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        return _Opaque(device, compile(function, **options) if compile else function)

    functions: dict[str, Any] = {
        "Stream": device.new_stream,
        "stream": device.use_stream,
        "current_stream": lambda *_: device.stream,
        "CUDAGraph": lambda: Graph(device),
        "graph_pool_handle": device.graph_pool_handle,
        "synchronize": lambda *_: device.refuse_while_capturing("synchronize"),
        "is_current_stream_capturing": lambda: device.recording is not None,
        "empty_cache": device.empty_cache,
        "memory_allocated": device.memory_allocated,
        "get_sync_debug_mode": lambda: device.sync_mode,
        "set_sync_debug_mode": device.set_sync_mode,
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "set_rng_state": lambda state, *_: torch.set_rng_state(state),
        "device": lambda *_: nullcontext(),
    }
    with ExitStack() as patches:
        for name, function in functions.items():
            patches.enter_context(mock.patch.object(torch.cuda, name, function))
        allocator = {
            "_host_emptyCache": lambda: None,
            "_cuda_endAllocateToPool": device.stop_allocating,
        }
        for name, function in allocator.items():
            patches.enter_context(mock.patch.object(torch._C, name, function, create=True))
        patches.enter_context(mock.patch.object(torch, "compile", compiled))
        patches.enter_context(DeviceMode(device))
        yield device
