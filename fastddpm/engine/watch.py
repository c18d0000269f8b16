"""What a step must not do if it is to be captured, looked for while it still runs as it is.

A capture that fails half way can leave torch's allocator and random generators unusable, so these
are found before: waiting for the device, drawing random numbers, keeping memory.
"""

from __future__ import annotations

import gc
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from fastddpm.engine.plan import CannotPrepare

# Both run any step, one Python call at a time.
OTHERS = "engine='compile' or 'reference' runs it"


@contextmanager
def watched(device: torch.device) -> Iterator[None]:
    """Raise CannotPrepare if what runs inside could not be captured and replayed."""
    random, held = _generators(device), torch.cuda.memory_allocated(device)
    with no_waiting():
        yield
    if not all(map(torch.equal, random, _generators(device))):
        raise cannot_capture(
            "it draws from torch's random generator (dropout in training mode?), while a chain's "
            "noise comes from its seed alone"
        )
    if torch.cuda.memory_allocated(device) > held:
        gc.collect()
        grown = torch.cuda.memory_allocated(device) - held
        if grown > 0:
            raise cannot_capture(
                f"every call of it keeps {grown} more bytes on the device, while a graph allocates "
                "once"
            )


@contextmanager
def no_waiting() -> Iterator[None]:
    """Raise CannotPrepare where the host would wait for the device."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    except RuntimeError as error:
        if "synchronizing CUDA operation" not in str(error):
            raise
        raise cannot_capture(
            f"it waits for the device {_place(error)} (.item(), a branch on a tensor's value, an "
            "output whose shape depends on values, or a copy between the device and the host)"
        ) from error
    finally:
        torch.cuda.set_sync_debug_mode(before)


def cannot_capture(why: str) -> CannotPrepare:
    return CannotPrepare(f"the step cannot be captured in a CUDA graph: {why}; {OTHERS}")


def _place(error: BaseException) -> str:
    """The last line outside of torch that the error came through."""
    inside = str(Path(torch.__file__).parent)
    frames = traceback.extract_tb(error.__traceback__)
    *_, last = (frame for frame in frames if not frame.filename.startswith(inside))
    return f"at {last.filename}:{last.lineno}"


def _generators(device: torch.device) -> tuple[Tensor, Tensor]:
    """The states of torch's default generators, on the host."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device)
