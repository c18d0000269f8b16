"""The CPU engine: the step as a flat native program, replayed for every step of the chain.

    prepare:  the step runs once on pretended tensors; what torch dispatched becomes instructions
              (cpu/recording.py, cpu/lowering.py) over packed weights and one arena
    run:      copy x in;  index = start;  begin(state);  the program counts the index down

No Python runs between two steps, but for a look whether somebody wants to interrupt. What has no
instruction is refused by name. Weights that changed since are packed again when a chain begins, and
a step whose tensors lie elsewhere by then is recorded anew. Programs of one engine take turns: they
share the weights, and what runs them releases Python's lock.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from fastddpm.engine.cpu.lowering import Lowered, lower
from fastddpm.engine.cpu.native import NativeProgram
from fastddpm.engine.cpu.options import CpuOptions
from fastddpm.engine.cpu.packed import PackedWeights
from fastddpm.engine.cpu.recording import record
from fastddpm.engine.eager import EagerRunner
from fastddpm.engine.glance import Marks
from fastddpm.engine.plan import CannotPrepare, Plan, Runner, Step
from fastddpm.engine.runner import ChainRunner
from fastddpm.ops.library import cpu_library
from fastddpm.ops.program_abi import Arguments

# How long the library runs before Python may look for an interrupt.
_SECONDS = 0.1


class CpuPrograms:
    """The engine. The programs of one instance share their packed weights.

    Raises ValueError where there is no library to run them.
    """

    # The most pixels of a batch: 32 images of 32x32. More at once share the transform of the
    # weights, but each takes memory for its maps, in every program that is kept. Zen 3 with two
    # threads of AVX2, November 2026: the CIFAR-10 network, 3.7 MB an image, is 1.06 times as fast
    # with 32 as with 8 images, 1.08 with 64; the built-in model, .6 MB, 1.1 times with 41 beside
    # 10, 1.12 to 1.18 with 64.
    pixels = 32768

    def __init__(self, options: CpuOptions | None = None) -> None:
        self._options = options or CpuOptions()
        self._weights = PackedWeights(self._options)
        self._last: Callable[[], CpuRunner | None] = lambda: None

    def prepare(self, step: Step, plan: Plan) -> Runner:
        """Record the step and make its program.

        Raises CannotPrepare for a step with anything that has no instruction, naming it. What the
        step raises by itself goes through.
        """
        if plan.dtype != torch.float32:
            raise CannotPrepare(f"programs compute in float32, the chain's state is {plan.dtype}")
        if plan.shape[0] == 0:
            return EagerRunner(step, plan)
        runner = CpuRunner(step, plan, self._options.team, self._weights)
        self._last = weakref.ref(runner)
        return runner

    def report(self) -> list[str]:
        """What runs, and what the last program takes while it is kept, a line each."""
        options = self._options
        lines = [
            f"threads: {options.team}; weights: {options.weights}; memory: {options.memory}; "
            f"instruction set: {cpu_library().isa}"
        ]
        runner = self._last()
        if runner is not None:
            lines += [runner.describe(), f"packed weights: {_megabytes(self._weights.bytes)}"]
        return lines


class CpuRunner(ChainRunner):
    """Replays a program; see :class:`fastddpm.engine.Runner`."""

    def __init__(self, step: Step, plan: Plan, threads: int, weights: PackedWeights) -> None:
        super().__init__(step, plan)
        self._threads = threads
        self._weights = weights
        self._program = self._made()

    def _made(self) -> _Program:
        recording = record(self.call, self.plan)
        lowered = lower(recording, self.plan, self._state, self._weights)
        return _Program(lowered, self._threads)

    def reread(self) -> None:
        self._weights.refresh(self._program.lowered.packed, reread=True)

    def describe(self) -> str:
        """What the program takes, in words."""
        return self._program.describe()

    @property
    def code(self) -> tuple[Arguments, ...]:
        """The program's instructions in the order in which they run."""
        return self._program.lowered.code

    def profile(self, x: Tensor, steps: int) -> Tensor:
        """Seconds of each instruction in all ``steps`` first steps, float64 [len(code)]."""
        self._start(x, None, steps)
        seconds = torch.zeros(len(self.code), dtype=torch.float64)
        for _ in range(steps):
            with self._weights.lock:
                self._program.native.profile(self._index, seconds)
        return seconds

    def _start(self, x: Tensor, start: int | None, steps: int | None) -> range:
        indices = super()._start(x, start, steps)
        if self._program.moved():
            self._program = self._made()
        self._program.refresh(self._weights)
        return indices

    def _advance(self, count: int) -> Tensor:
        while count > 0:
            with self._weights.lock:
                count -= self._program.native.run(self._index, count, _SECONDS)
            for call in self._program.lowered.calls:
                call.check()
        return self._state


class _Program:
    """A lowered step in the library, with all that it reads kept alive."""

    def __init__(self, lowered: Lowered, threads: int) -> None:
        self.lowered = lowered
        self.native = NativeProgram(lowered.code, threads)
        self._constants = Marks(lowered.constants)
        self._sources = self._marked()

    def moved(self) -> bool:
        """Whether a tensor that it reads or writes lies elsewhere by now."""
        return self._constants.moved()

    def refresh(self, weights: PackedWeights) -> None:
        """Pack again what was written since."""
        if self._sources.changed():
            weights.refresh(self.lowered.packed)
            self._sources = self._marked()

    def _marked(self) -> Marks:
        return Marks(source for packed in self.lowered.packed for source in packed.sources)

    def describe(self) -> str:
        code = self.lowered.code
        kinds = Counter(type(arguments).__name__ for arguments in code).most_common()
        listed = ", ".join(f"{count} {name}" for name, count in kinds)
        arena = _megabytes(self.lowered.arena.numel())
        scratch = _megabytes(self.native.scratch_bytes)
        return f"program: {len(code)} instructions ({listed}); arena {arena}, scratch {scratch}"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
