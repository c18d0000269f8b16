"""What the executor raises: a Fault for a wrong program, Unsupported for one it cannot judge."""

from __future__ import annotations


class Fault(Exception):
    """The kernel does what no kernel may do: the message names instruction, lane and address."""


class Unsupported(Exception):
    """PTX that the executor does not know; it never guesses."""
