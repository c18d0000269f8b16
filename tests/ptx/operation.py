"""Operation: an instruction that computes a register from registers and does nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .form import Form
from .scalars import PAIRS, Array, decode, encode, halves, join


@dataclass(frozen=True)
class Operation:
    """result = evaluate(sources), all of them register bits of the types named."""

    result: str
    sources: tuple[str, ...]
    evaluate: Callable[..., Array]


def build(
    form: Form, result: str, sources: Sequence[str], function: Callable[..., Array]
) -> Operation:
    """An Operation from a function of numbers, which is applied twice to packed types."""
    form.done(operands=1 + len(sources))
    if result in PAIRS:
        return Operation(result, tuple(sources), _twice(function, result))

    def evaluate(*bits: Array) -> Array:
        values = (decode(b, kind) for b, kind in zip(bits, sources, strict=True))
        return encode(function(*values), result)

    return Operation(result, tuple(sources), evaluate)


def _twice(function: Callable[..., Array], packed: str) -> Callable[..., Array]:
    kind = PAIRS[packed]

    def evaluate(*bits: Array) -> Array:
        low, high = zip(*(halves(b, packed) for b in bits), strict=True)
        both = [encode(function(*(decode(b, kind) for b in half)), kind) for half in (low, high)]
        return join(*both, packed)

    return evaluate
