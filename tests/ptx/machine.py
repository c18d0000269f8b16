"""Machine: the lanes of some blocks of a grid, their registers, and the lock-step they run in.

All lanes of the blocks at hand advance together, each with its own program counter. The lanes with
the smallest one run next, up to the next branch, label or barrier, which brings diverged lanes
together again where their paths meet. Barriers hold a block's lanes until all of them are there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np

from .accumulators import Accumulators
from .cells import NOBODY, Requests
from .faults import Fault, Unsupported
from .memory import GlobalMemory
from .program import Address, Immediate, Instruction, Operand, Program, Register, Special, Symbol
from .scalars import SIGNED, UNSIGNED, Array, width
from .shared_memory import SHARED_BASE, SharedMemory

WARP = 32
# What a register holds before it is written: NaN in every floating-point type.
POISON = 0x7FFD_7FFD_7FFD_7FFD
# Blocks that run more instructions than this do not end.
LIMIT = 20_000_000


@dataclass
class Step:
    """A decoded instruction; ``count`` is the number of lanes that have executed it."""

    instruction: Instruction
    execute: Callable[[Machine], None]
    count: int = field(default=0)


@dataclass(frozen=True)
class Code:
    """A decoded program: its steps, and for each the end of the straight line it stands in."""

    program: Program
    steps: list[Step]
    ends: list[int]


class Machine:
    """The blocks of these numbers in a grid (x, y, z), ready to run."""

    def __init__(
        self,
        code: Code,
        parameters: dict[str, int],
        memory: GlobalMemory,
        shared: SharedMemory,
        grid: tuple[int, int, int],
        blocks: Array,
    ) -> None:
        self.code, self.program = code, code.program
        self.parameters, self.memory, self.shared = parameters, memory, shared
        threads = self.program.block
        self.lanes = len(blocks) * threads
        self.thread = np.tile(np.arange(threads), len(blocks))
        self.warp = self.thread // WARP
        self.block = np.repeat(blocks, threads)  # its number in the grid
        self.slot = np.repeat(np.arange(len(blocks)), threads)  # its number in this machine
        self.epoch = np.zeros(len(blocks), np.int32)  # barriers that each block has passed
        self.special = self._special(grid)
        self.registers: dict[str, Array] = {}
        self.constants: dict[tuple[int, int], Array] = {}
        self.counter = np.zeros(self.lanes, np.int64)
        self.exited = np.zeros(self.lanes, bool)
        self.waiting = np.full(self.lanes, -1)  # the barrier that a lane waits at
        self.groups = np.zeros(self.lanes, np.int64)  # of asynchronous copies, committed by a lane
        self.accumulators = Accumulators(self.lanes, self.program.accumulators)
        self.fenced = np.full(self.lanes, -1)  # the epoch of a lane's last fence.proxy.async
        # For the instruction at hand: the lanes it is for, and whether that is all of them.
        self.active, self.all_active = np.ones(self.lanes, bool), True
        self.instruction = code.steps[0].instruction
        self.executed = 0

    def _special(self, grid: tuple[int, int, int]) -> dict[str, Array]:
        x, y, z = grid
        one = np.ones_like(self.thread)
        values = {
            "%tid.x": self.thread,
            "%tid.y": 0 * one,
            "%tid.z": 0 * one,
            "%ntid.x": one * self.program.block,
            "%ctaid.x": self.block % x,
            "%ctaid.y": self.block // x % y,
            "%ctaid.z": self.block // (x * y),
            "%nctaid.x": one * x,
            "%nctaid.y": one * y,
            "%nctaid.z": one * z,
            "%laneid": self.thread % WARP,
        }
        return {name: value.astype(np.uint32) for name, value in values.items()}

    # The run

    def run(self) -> None:
        """Run until every lane has exited."""
        with np.errstate(all="ignore"):
            while not self.exited.all():
                ready = ~self.exited & (self.waiting < 0)
                if ready.any():
                    self._run_straight(ready)
                else:
                    self._release_barriers()

    def _run_straight(self, ready: Array) -> None:
        start = int(self.counter[ready].min())
        here = ready & (self.counter == start)
        everyone = bool(here.all())
        if start == len(self.code.steps):
            raise Fault(f"{self.program.name}: threads run past the last instruction")
        end = self.code.ends[start]
        # Where to go on, unless a branch says otherwise.
        self.counter[here] = end
        for step in self.code.steps[start:end]:
            self.instruction = step.instruction
            self.active, self.all_active = here, everyone
            if step.instruction.predicate is not None:
                self._apply_predicate(step.instruction)
            step.count += self.lanes if self.all_active else int(self.active.sum())
            if self.all_active or self.active.any():
                step.execute(self)
        self.executed += end - start
        if self.executed > LIMIT:
            raise Fault(f"{self.where()}: the program does not end")

    def _apply_predicate(self, instruction: Instruction) -> None:
        value = self._register(str(instruction.predicate))
        self.active = self.active & (~value if instruction.negated else value)
        self.all_active = bool(self.active.all())

    def jump(self, target: int) -> None:
        """Send the active lanes to an instruction."""
        self.counter[self.active] = target

    def exit(self) -> None:
        """End the active lanes."""
        self.exited |= self.active

    def wait(self, barrier: int) -> None:
        """Hold the active lanes at a barrier."""
        self.waiting[self.active] = barrier

    def _release_barriers(self) -> None:
        """Let the lanes of every block go on from the barrier, which all must have reached."""
        waiting = self.waiting.reshape(-1, self.program.block)
        exited = self.exited.reshape(waiting.shape)
        split = (waiting != waiting[:, :1]).any(axis=1) | (exited.any(axis=1) & ~exited.all(axis=1))
        for slot in np.flatnonzero(split)[:1]:
            lane = int(slot) * self.program.block
            raise Fault(f"{self.where(lane)}: a barrier that some threads of the block never reach")
        self.epoch += waiting[:, 0] >= 0
        self.waiting[:] = -1

    # Operands

    def bits(self, operand: Operand, size: int) -> Array:
        """An operand's low ``size`` bits in every lane; a predicate (size 1) as bool."""
        if isinstance(operand, Immediate):
            return self._constant(operand.bits, size)
        if isinstance(operand, Register):
            value = self._register(operand.name)
        elif isinstance(operand, Special) and operand.name in self.special:
            value = self.special[operand.name]
        elif isinstance(operand, Symbol) and operand.name == self.program.shared:
            value = self._constant(SHARED_BASE, 64)
        else:
            raise Unsupported(f"operand {operand} in: {self.instruction.text}")
        if size == 1:
            return value
        if value.dtype.itemsize * 8 < size:
            raise Unsupported(f"operand {operand} has fewer than {size} bits: {self.text}")
        return value.astype(UNSIGNED[size], copy=False)

    def _constant(self, bits: int, size: int) -> Array:
        key = (bits, size)
        if key not in self.constants:
            kind = bool if size == 1 else UNSIGNED[size]
            self.constants[key] = np.full(self.lanes, bits & ((1 << size) - 1), kind)
        return self.constants[key]

    def _register(self, name: str) -> Array:
        self._refuse_product(name, "reads")
        if name not in self.registers:
            size = self.program.widths[name]
            if size == 1:
                raise Fault(f"{self.where()}: predicate {name} is read before it is written")
            return self._constant(POISON, size)
        return self.registers[name]

    def write(self, register: Operand, value: Array, kind: str) -> None:
        """Set a register in the active lanes; a signed number extends into a wider register."""
        if not isinstance(register, Register):
            raise Unsupported(f"destination {register} in: {self.text}")
        if register.name == "_":
            return
        self._refuse_product(register.name, "writes")
        size = self.program.widths[register.name]
        if width(kind) > size:
            raise Unsupported(f"{kind} into a register of {size} bits: {self.text}")
        if width(kind) < size:
            if kind[0] == "s":
                value = value.view(SIGNED[width(kind)]).astype(SIGNED[size])
            value = value.astype(UNSIGNED[size])
        if not self.all_active:
            old = self.registers.get(register.name)
            old = self._constant(POISON, size) if old is None else old
            value = np.where(self.active, value, old)
        self.registers[register.name] = value

    def _refuse_product(self, name: str, does: str) -> None:
        """A Fault if a product under way sums into this register; a write is to be fenced."""
        accumulator = self.accumulators.by_name.get(name)
        if accumulator is not None:
            self.refuse(accumulator.group != NOBODY, f"{does} {name}, a product's, not waited for")
            if does == "writes":
                accumulator.fenced &= ~self.active

    def addresses(self, operand: Operand) -> Array:
        """The address in each active lane, as int64."""
        if not isinstance(operand, Address):
            raise Unsupported(f"address {operand} in: {self.text}")
        base = operand.base
        size = self.program.widths[base.name] if isinstance(base, Register) else 64
        return self.bits(base, size)[self.active].astype(np.int64) + operand.offset

    def requests(self, addresses: Array, lanes: Array | None = None) -> Requests:
        """Who asks for the memory at these addresses: the active lanes, if no others are given."""
        lanes = np.flatnonzero(self.active) if lanes is None else lanes

        def fail(row: int, reason: str) -> NoReturn:
            raise Fault(f"{self.where(int(lanes[row]))}, address {addresses[row]:#x}: {reason}")

        slot = self.slot[lanes]
        return Requests(lanes, self.block[lanes], slot, self.warp[lanes], self.epoch[slot], fail)

    def whole_warps(self) -> None:
        """An instruction that a warp executes together must find all its lanes."""
        whole = self.active.reshape(-1, WARP).all(axis=1)
        self.refuse(np.repeat(~whole, WARP), "only some lanes of a warp are here")

    def refuse(self, wrong: Array, reason: str) -> None:
        """A Fault if anything is wrong with an active lane."""
        for lane in np.flatnonzero(wrong & self.active)[:1]:
            raise Fault(f"{self.where(int(lane))}: {reason}")

    # Messages

    @property
    def text(self) -> str:
        """The instruction at hand."""
        return self.instruction.text

    def where(self, lane: int | None = None) -> str:
        """The kernel, the line of Python, the instruction, and the lane if one is given."""
        place = f"{self.program.name} ({self.instruction.source}): {self.text}"
        if lane is None:
            return place
        program = tuple(int(self.special[f"%ctaid.{axis}"][lane]) for axis in "xyz")
        return f"{place}: program {program}, thread {int(self.thread[lane])}"
