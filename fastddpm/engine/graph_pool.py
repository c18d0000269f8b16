"""The memory that captured graphs share: one private pool of torch's allocator and one stream.

Memory that one graph uses inside a replay is free for the next graph, because replays follow one
another on a stream. torch keeps free blocks by stream, so all captures use the same one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch


class GraphPool:
    """A pool on the device, and the side stream that warms up and captures."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # torch.cuda.Stream has no annotations.
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._handle = torch.cuda.graph_pool_handle()
        # A pool whose last graph has gone cannot be captured into again (an internal assertion of
        # torch's), so one graph stays.
        byte = torch.zeros(1, dtype=torch.uint8, device=device)
        with self.capturing() as self._anchor:
            byte.zero_()
        self._byte = byte

    @contextmanager
    def side_stream(self) -> Iterator[None]:
        """Run what is inside on the pool's stream: after what was launched before, and before what
        is launched after."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            current.wait_stream(self._stream)

    @contextmanager
    def capturing(self) -> Iterator[torch.cuda.CUDAGraph]:
        """Capture what is inside into the graph that this yields; other threads may go on using
        the device meanwhile.

        After an error the pool must not be used again, the device may.
        """
        graph = torch.cuda.CUDAGraph()
        # torch leaves its capture stream current when it cannot end a capture.
        with torch.cuda.stream(torch.cuda.current_stream()):
            try:
                with torch.cuda.graph(
                    graph,
                    pool=self._handle,
                    stream=self._stream,
                    capture_error_mode="thread_local",
                ):
                    yield graph
            except BaseException:
                self._stop_allocating()
                raise

    def _stop_allocating(self) -> None:
        """Undo what a failed capture leaves in torch's allocator before 2.12, which would refuse
        to free memory for the rest of the process."""
        with suppress(RuntimeError):  # It has stopped already.
            torch._C._cuda_endAllocateToPool(self._device.index, self._handle)
