"""What torch.randn draws on the CPU, from the same generator, by the C++ library: the same bits.

torch makes its Mersenne Twister's words one by one, which is most of a draw. The kernel makes
LANES of them at once and repeats torch's AVX2 arithmetic; it is used only where a trial has shown
that this torch, on this machine, gives these bits. Specification: torch.randn.

A draw is three steps where torch's is one: the state is read, numbers are made, the state is set.
torch's default generator belongs to all threads, any of which may draw from it between the three
and get the same numbers. So it is set only if this is the one Python thread and the state is still
what was read, and nothing can come between these two looks and the setting.
"""

from __future__ import annotations

import functools
import math
import sys
import threading
from collections.abc import Sequence
from itertools import compress, starmap

import torch
from torch import Tensor

from fastddpm.ops.library import cpu_library

# Fewer are drawn by another formula.
SMALLEST = 16
# One in a thousand normals shows another fusing of multiply and add.
TRIAL = 65536 + 5
# Its threads redraw progress bars and no numbers.
_QUIET = "tqdm._monitor"


def randn(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """torch.randn(shape, generator=generator) in float32, and the same state left in it.

    generator: on the CPU. Another thread must not draw from it meanwhile, unless it is
        torch.default_generator. From that torch itself draws while there are other Python threads
        (tqdm's aside), so that no two draws give the same numbers, ours or torch's. Not seen are
        draws of threads that do not run Python, or that _thread.start_new_thread has only just
        begun (threading.Thread waits until its thread runs), and of a __del__ that Python's garbage
        collector calls in the instant of the exchange: who draws there gives a generator.
    """
    if math.prod(shape) >= SMALLEST and not unsupported():
        own = generator is not torch.default_generator
        drawn = _native(shape, generator) if own else _exchanged(shape, generator)
        if drawn is not None:
            return drawn
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")


def unsupported() -> list[str]:
    """Why torch itself draws here; empty if the library does."""
    library = cpu_library()
    if library.handle is None:
        return [library.reason]
    return _differences(library.isa)


@functools.cache
def _differences(isa: str) -> list[str]:
    """What a trial on this instruction set says against it."""
    if isa == "baseline":
        return ["the baseline instruction set has no such kernel"]
    own, theirs = (torch.Generator().manual_seed(0) for _ in range(2))
    expected = torch.randn(TRIAL, generator=theirs, dtype=torch.float32, device="cpu")
    same = torch.equal(_native((TRIAL,), own).view(torch.int32), expected.view(torch.int32))
    if same and torch.equal(own.get_state(), theirs.get_state()):
        return []
    return [f"this torch draws other normals than the {isa} kernel"]


def _native(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Of a generator that nobody else draws from."""
    state = generator.get_state()
    out = _drawn(shape, state)
    generator.set_state(state)
    return out


def _exchanged(shape: Sequence[int], generator: torch.Generator) -> Tensor | None:
    """Of a generator that others may draw from; None if another Python thread might."""
    quiet = {threading.get_ident(), *_quiet_threads()}
    while quiet.issuperset(sys._current_frames()):
        before = generator.get_state()
        after = before.clone()
        out = _drawn(shape, after)
        # Lazy, and run to its end by one call into C: in between Python executes nothing, so no
        # signal handler draws and no thread starts. `after` passes if we are alone, and then if
        # the state is the one before; what has passed is set.
        alone = map(quiet.issuperset, starmap(sys._current_frames, [()]))
        unmoved = map(torch.equal, [before], starmap(generator.get_state, [()]))
        if list(map(generator.set_state, compress(compress([after], alone), unmoved))):
            return out
    return None


def _quiet_threads() -> list[int | None]:
    return [one.ident for one in threading.enumerate() if type(one).__module__ == _QUIET]


def _drawn(shape: Sequence[int], state: Tensor) -> Tensor:
    """From a generator's state, which becomes the one after the draw."""
    out = torch.empty(shape, dtype=torch.float32, device="cpu")
    cpu_library().call("fastddpm_torch_normal", out.data_ptr(), out.numel(), state.data_ptr())
    return out
