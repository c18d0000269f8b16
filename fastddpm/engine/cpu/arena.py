"""The arena: one piece of memory for all maps of a program, each there only while it is needed.

    reserve(...) -> a name for floats that have no place yet, a number like an address
    place(code)  -> the memory; every name in the code becomes an address

Floats live from the first instruction that names them to the last. Those that live at the same time
do not overlap; the largest are placed first, each into the smallest gap that holds it.
"""

from __future__ import annotations

import ctypes
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastddpm.engine.cpu.memory import aligned, zeros
from fastddpm.ops.program_abi import Arguments

# No process has an address as high as this.
_FIRST_NAME = 1 << 60
_FLOAT = 4


@dataclass(eq=False)
class _Piece:
    """Bytes that live during the instructions first, ..., last."""

    name: int
    size: int
    first: int = -1
    last: int = -1
    offset: int = -1

    def meets(self, other: _Piece) -> bool:
        return self.first <= other.last and other.first <= self.last


class Arena:
    """The floats of one program; after ``place`` ``memory`` holds them all."""

    memory: Tensor

    def __init__(self) -> None:
        self._pieces: list[_Piece] = []
        self._names: list[int] = []
        self._next = _FIRST_NAME

    def reserve(self, floats: int) -> int:
        """A name for so many floats, aligned to 64 bytes. Name plus 4 k means the k-th of them."""
        piece = _Piece(self._next, aligned(floats * _FLOAT))
        self._pieces.append(piece)
        self._names.append(piece.name)
        self._next += piece.size
        return piece.name

    def place(self, code: Sequence[Arguments]) -> None:
        """Give every name in the code its address."""
        for at, arguments in enumerate(code):
            for pointer in pointers(arguments):
                piece = self._piece(pointer.value)
                if piece is not None:
                    piece.first, piece.last = (at if piece.first < 0 else piece.first), at
        hosts = self._sums_in_place(code)
        named = [piece for piece in self._pieces if piece.first >= 0 and piece not in hosts]
        self.memory = zeros(_placed(named))
        for piece, host in hosts.items():
            piece.offset = _last_host(host, hosts).offset
        for arguments in code:
            for pointer in pointers(arguments):
                piece = self._piece(pointer.value)
                if piece is not None:
                    within = pointer.value - piece.name
                    pointer.set(self.memory.data_ptr() + piece.offset + within)

    @property
    def pieces(self) -> list[tuple[int, int]]:
        """(address, bytes) of everything that has been placed."""
        begin = self.memory.data_ptr()
        return [(begin + piece.offset, piece.size) for piece in self._pieces if piece.offset >= 0]

    def _piece(self, name: int) -> _Piece | None:
        if name < _FIRST_NAME:
            return None
        return self._pieces[bisect_right(self._names, name) - 1]

    def _sums_in_place(self, code: Sequence[Arguments]) -> dict[_Piece, _Piece]:
        """Outputs that take the place of the residual they add, which nobody reads later; as
        output -> residual."""
        hosts: dict[_Piece, _Piece] = {}
        for at, arguments in enumerate(code):
            y = getattr(arguments, "y", None)
            if y is None or not y.residual or y.residual_stride != y.stride:
                continue
            output, residual = self._piece(y.data), self._piece(y.residual)
            if output is None or residual is None or output.size != residual.size:
                continue
            host = _last_host(residual, hosts)
            readers = [self._piece(pointer.value) for pointer in pointers(arguments)]
            if host.last == at and output.first == at and readers.count(residual) == 1:
                hosts[output], host.last = host, output.last
        return hosts


@dataclass(frozen=True)
class Pointer:
    """A pointer in a struct of ctypes: where it stands and what it holds."""

    holder: Any
    place: str | int
    value: int

    def set(self, value: int) -> None:
        if isinstance(self.place, str):
            setattr(self.holder, self.place, value)
        else:
            self.holder[self.place] = value


def pointers(struct: ctypes.Structure) -> Iterator[Pointer]:
    """All pointers of a struct and of those in it, but null."""
    for field in struct._fields_:
        name, value = field[0], getattr(struct, field[0])
        if isinstance(value, ctypes.Structure):
            yield from pointers(value)
        elif isinstance(value, ctypes.Array):
            held = enumerate(value) if value._type_ is ctypes.c_void_p else ()
            yield from (Pointer(value, k, part) for k, part in held if part)
        elif field[1] is ctypes.c_void_p and value:
            yield Pointer(struct, name, value)


def _placed(pieces: list[_Piece]) -> int:
    """Gives each piece its offset; returns how many bytes all need."""
    done: list[_Piece] = []
    for piece in sorted(pieces, key=lambda piece: -piece.size):
        neighbours = sorted((p for p in done if p.meets(piece)), key=lambda p: p.offset)
        piece.offset = _smallest_gap(neighbours, piece.size)
        done.append(piece)
    return max((piece.offset + piece.size for piece in done), default=0)


def _smallest_gap(neighbours: list[_Piece], size: int) -> int:
    """The offset of the smallest gap between the neighbours that holds ``size``, or their end."""
    best, least, end = -1, -1, 0
    for neighbour in neighbours:
        gap = neighbour.offset - end
        if gap >= size and (best < 0 or gap < least):
            best, least = end, gap
        end = max(end, neighbour.offset + neighbour.size)
    return end if best < 0 else best


def _last_host(piece: _Piece, hosts: dict[_Piece, _Piece]) -> _Piece:
    while piece in hosts:
        piece = hosts[piece]
    return piece
