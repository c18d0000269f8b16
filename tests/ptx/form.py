"""Form: an instruction's modifiers, taken one by one, so that an unknown one cannot pass unseen."""

from __future__ import annotations

from .faults import Unsupported
from .program import Instruction
from .scalars import TYPES


class Form:
    """The modifiers of an instruction that nobody has taken yet."""

    def __init__(self, instruction: Instruction) -> None:
        self.instruction = instruction
        self.left = list(instruction.modifiers)

    def unsupported(self, what: str) -> Unsupported:
        return Unsupported(f"{what} in: {self.instruction.text}")

    def flag(self, *names: str) -> bool:
        """Whether one of these modifiers stands here; takes all that do."""
        found = [name for name in self.left if name in names]
        self.left = [name for name in self.left if name not in names]
        return bool(found)

    def one_of(self, *names: str, default: str | None = None) -> str:
        """The one of these modifiers that stands here."""
        found = [name for name in self.left if name in names]
        if len(found) > 1 or not (found or default):
            raise self.unsupported(f"expected one of {', '.join(names)}")
        self.flag(*names)
        return found[0] if found else str(default)

    def kind(self, *allowed: str) -> str:
        """The last modifier, which must be a type, and one of ``allowed`` if any are given."""
        kind = self.left.pop() if self.left else "no type"
        if kind not in (allowed or TYPES):
            raise self.unsupported(f"type {kind}")
        return kind

    def done(self, operands: int | None = None) -> None:
        """Nothing may be left over."""
        if self.left:
            raise self.unsupported(f"modifier .{self.left[0]}")
        if operands is not None and len(self.instruction.operands) != operands:
            raise self.unsupported(f"expected {operands} operands")
