"""Do we compute what others' code computes, as it is installed here?

Networks, schedulers, whole short chains and checkpoints, ours beside diffusers' and OpenAI's, on
the CPU. `fastddpm doctor --parity` prints the largest differences.
"""

from __future__ import annotations

from fastddpm.parity import diffusers, openai
from fastddpm.selfcheck import Check

__all__ = ["all_checks"]


def all_checks() -> list[Check]:
    """Every comparison; those whose other side is not installed say so."""
    return [*diffusers.checks(), *openai.checks()]
