"""How large a pickle's value is with nothing shared, found without running the pickle.

A pickle may use a value again and again from its memo. Thirty pairs, each of the one before twice,
take 300 bytes, and to hash or print them takes 2^30 steps; a list can be copied any number of
times. So the sizes of all values are followed, as the instructions build them, and what is used
again is counted as if it were written out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# A state dict with its averages and Adam's moments uses some 20 small values again for each tensor.
MOST_COPIED = 1_000_000
# Python hashes a nested tuple by recursion that nothing bounds.
MOST_NESTED = 100


@dataclass(slots=True)
class _Value:
    """All values in a value, and how deep they lie; complete once it is used a second time."""

    size: int = 1
    depth: int = 0
    complete: bool = False


_SCALAR = _Value(complete=True)
# Multiples of 2^61 - 1 have one hash, so that as keys each is compared with all before it. A seed
# or a magic number may be so large; a thousand keys may not.
_LONG = _Value(MOST_COPIED // 1000)
_SCALARS = {"NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
_SCALARS |= {"GLOBAL", "EMPTY_TUPLE"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Sharing:
    """Follows a pickle's instructions: those that torch's reader knows."""

    def __init__(self) -> None:
        self._stack: list[_Value] = []
        self._outer: list[list[_Value]] = []
        self._memo: dict[int, _Value] = {}
        self._copied = 0

    def follow(self, name: str, argument: object) -> None:
        """Raise ValueError if with this instruction the value is too large or too deep."""
        stack = self._stack
        if name in _SCALARS:
            stack.append(_SCALAR)
            if isinstance(argument, int) and abs(argument) >= 2**64:
                self._copy(_LONG)
        elif name in ("BINUNICODE", "SHORT_BINSTRING"):
            assert isinstance(argument, (str, bytes))
            stack.append(_Value(1 + len(argument) // 64, complete=True))
        elif name in ("EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"):
            stack.append(_Value())
        elif name == "MARK":
            self._outer.append(stack)
            self._stack = []
        elif name == "TUPLE":
            self._push_tuple(self._since_mark())
        elif name in _TUPLES:
            self._push_tuple([stack.pop() for _ in range(_TUPLES[name])])
        elif name in ("APPENDS", "SETITEMS"):
            self._put_in(self._since_mark())
        elif name == "APPEND":
            self._put_in([stack.pop()])
        elif name == "SETITEM":
            self._put_in([stack.pop(), stack.pop()])
        elif name not in ("PROTO", "STOP"):
            self._share(name, argument)

    def _share(self, name: str, argument: object) -> None:
        """The instructions that use a value again, or hand it to a function that may copy it."""
        stack = self._stack
        if name in ("BINPUT", "LONG_BINPUT"):
            assert isinstance(argument, int)
            self._memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            assert isinstance(argument, int)
            value = self._memo[argument]
            value.complete = True
            self._copy(value)
            stack.append(value)
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, _ = stack.pop(), stack.pop()
            self._copy(arguments)
            stack.append(_Value())
            self._put_in([arguments])
        elif name == "BUILD":
            state = stack.pop()
            self._copy(state)
            self._put_in([state])
        elif name == "BINPERSID":
            stack[-1] = _SCALAR
        else:
            raise ValueError(f"no torch file has the instruction {name}")

    def _since_mark(self) -> list[_Value]:
        values, self._stack = self._stack, self._outer.pop()
        return values

    def _push_tuple(self, values: Sequence[_Value]) -> None:
        self._stack.append(_Value())
        self._put_in(values)
        self._stack[-1].complete = True

    def _put_in(self, values: Sequence[_Value]) -> None:
        whole = self._stack[-1]
        if whole.complete:
            raise ValueError("it changes a value that it has used already")
        whole.size += sum(value.size for value in values)
        whole.depth = max([whole.depth, *(value.depth + 1 for value in values)])
        if whole.depth > MOST_NESTED:
            raise ValueError(f"its values are nested more than {MOST_NESTED} deep")

    def _copy(self, value: _Value) -> None:
        self._copied += value.size
        if self._copied > MOST_COPIED:
            raise ValueError(f"it uses more than {MOST_COPIED} values again")
