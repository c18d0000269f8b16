"""What is wrong with bytes that do not decode."""

from __future__ import annotations


class DamagedError(ValueError):
    """The bytes are not what an encoder wrote: cut off, changed, or of something else."""


class ExhaustedError(DamagedError):
    """The bytes end before the next symbol is settled."""
