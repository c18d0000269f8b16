"""Whether a step is being recorded for a program: then composite layers call one registered op.

A recorder sees what torch dispatches. A layer that is one instruction of the program, as
self-attention is, would reach it as a dozen reshapes and products.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _State(threading.local):
    active = False


_state = _State()


@contextmanager
def recording() -> Iterator[None]:
    """Inside, on this thread, ``is_recording`` is true."""
    before = _state.active
    _state.active = True
    try:
        yield
    finally:
        _state.active = before


def is_recording() -> bool:
    """Whether the caller is inside of ``recording``."""
    return _state.active
