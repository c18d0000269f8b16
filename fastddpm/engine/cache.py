"""Prepared runners kept for the calls to come: the least recently used ones go.

A runner runs one chain at a time, so it is borrowed: who asks for the same key meanwhile gets
another one, in whatever thread.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class RunnerCache(Generic[T]):
    """Up to ``capacity`` runners (or whatever holds one) by key; at least 1.

    Raises ValueError for a smaller capacity.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"a cache of runners holds at least 1, got capacity={capacity}")
        self.capacity = capacity
        self._kept: OrderedDict[Hashable, T] = OrderedDict()
        self._epoch = 0
        # Again by one thread: what is let go of may end a stream that gives its runner back.
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._kept

    @contextmanager
    def borrow(self, key: Hashable, make: Callable[[], T]) -> Iterator[T]:
        """The runner kept under the key, or the one that ``make`` prepares, for this caller alone.

        At the end it becomes the most recently used one, and the cache lets go of those beyond its
        capacity. After ``clear`` it is let go of, too.
        """
        with self._lock:
            epoch, runner = self._epoch, self._kept.pop(key, None)
        if runner is None:
            runner = make()
        try:
            yield runner
        finally:
            with self._lock:
                if epoch == self._epoch:
                    self._keep(key, runner)

    def clear(self) -> None:
        """Let go of all runners, of borrowed ones when they come back."""
        with self._lock:
            self._epoch += 1
            self._kept.clear()

    def _keep(self, key: Hashable, runner: T) -> None:
        self._kept[key] = runner
        self._kept.move_to_end(key)
        while len(self._kept) > self.capacity:
            self._kept.popitem(last=False)
