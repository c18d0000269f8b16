"""Memory of our own: zeros, aligned to pages, on huge pages where the system has them."""

from __future__ import annotations

import mmap
from contextlib import suppress

import torch
from torch import Tensor

from fastddpm.ops.program_abi import ALIGN_BYTES


def zeros(count: int) -> Tensor:
    """``count`` zero bytes, uint8 [count]; they take up room when they are first written."""
    # Python maps shared memory by default, which Linux gives no huge pages.
    own: dict[str, int] = {}
    if hasattr(mmap, "MAP_PRIVATE"):
        own["flags"] = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    pages = mmap.mmap(-1, max(count, mmap.PAGESIZE), **own)
    # Only Linux has the advice; where huge pages are switched off it is refused.
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):
            pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=torch.uint8)[:count]


def aligned(count: int, multiple: int = ALIGN_BYTES) -> int:
    """The next multiple."""
    return -(-count // multiple) * multiple


class Blocks:
    """Pieces of memory for things that come and go one by one, cut from large blocks so that they
    share huge pages. A block goes when the last of its pieces goes."""

    BLOCK = 32 << 20

    def __init__(self) -> None:
        self._block = zeros(0)
        self._used = 0

    def take(self, count: int) -> Tensor:
        """``count`` bytes, uint8, aligned to 64."""
        if self._used + count > len(self._block):
            self._block, self._used = zeros(max(self.BLOCK, count)), 0
        piece = self._block[self._used : self._used + count]
        self._used = aligned(self._used + count)
        return piece
