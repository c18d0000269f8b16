"""What each recorded op becomes: one function per op, from the values of its arguments to that of
its result.

A sum is not an instruction where what it adds can go into the instruction that makes one of its
terms; a GroupNorm, an activation, a concatenation or a doubling is how the next instruction reads.
"""

from fastddpm.engine.cpu.rules import attention, convolution, reading, rows, step, sums
from fastddpm.engine.cpu.rules.registry import RULES

__all__ = ["RULES", "attention", "convolution", "reading", "rows", "step", "sums"]
