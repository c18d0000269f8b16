"""From a recorded step to the code of a program.

Every operation that matters is taken in the recorded order by the rule for its op (rules/), which
says what its result is in terms of its arguments' values and emits what has to be there. An op that
has no rule is refused by name where its result is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves, tree_map

from fastddpm.engine.cpu.calls import HostCall
from fastddpm.engine.cpu.emitter import Emitter
from fastddpm.engine.cpu.packed import Packed, PackedWeights
from fastddpm.engine.cpu.recording import Operation, Recording
from fastddpm.engine.cpu.rules import RULES
from fastddpm.engine.cpu.values import Constant, Feature, Index, InOrder, Missing, Read, Value
from fastddpm.engine.plan import CannotPrepare, Plan
from fastddpm.ops.program_abi import Arguments


@dataclass(frozen=True)
class Lowered:
    """A program's code, at the addresses of what it reads and writes.

    arena: the memory of its maps. packed: the weights that it reads. constants: tensors that it
    reads or writes where they lie. calls: the functions that it calls.
    """

    code: tuple[Arguments, ...]
    arena: Tensor
    packed: tuple[Packed, ...]
    constants: tuple[Tensor, ...]
    calls: tuple[HostCall, ...] = ()


def lower(recording: Recording, plan: Plan, state: Tensor, weights: PackedWeights) -> Lowered:
    """The program of a recorded step, whose state lies in ``state``.

    Raises CannotPrepare for what it has no instruction for, naming the operation and its place.
    """
    lowering = _Lowering(recording, plan, state, weights)
    for operation in recording.operations:
        lowering.take(operation)
    lowering.finish()
    emit = lowering.emit
    emit.arena.place(emit.code)
    held = tuple(emit.packed), tuple(emit.constants), tuple(emit.calls)
    return Lowered(tuple(emit.code), emit.arena.memory, *held)


class _Lowering:
    def __init__(
        self, recording: Recording, plan: Plan, state: Tensor, weights: PackedWeights
    ) -> None:
        self.emit = Emitter(weights, plan.num_steps)
        self._recording = recording
        self._uses = recording.uses()
        self._state = state
        self._values: dict[int, Value] = {
            id(recording.state): InOrder(state),
            id(recording.index): Index(),
        }

    def take(self, operation: Operation) -> None:
        """Give the operation's results their values."""
        if not operation.writes and not any(self._uses[id(r)] for r in operation.results):
            return
        try:
            returned = self._returned(operation)
        except CannotPrepare as error:
            raise CannotPrepare(f"{operation}: {error}") from error
        found = returned if isinstance(returned, (list, tuple)) else [returned]
        if operation.writes:
            self._values |= {id(v): self._after(v, operation) for v in _written(operation)}
        for tensor, value in zip(operation.results, found, strict=operation.results != ()):
            if isinstance(value, Feature):
                value.readers = self._uses[id(tensor)]
            if isinstance(value, (Feature, Read)) and not _has_shape(value, tensor):
                raise CannotPrepare(f"{operation}: the program does not broadcast")
            self._values[id(tensor)] = value

    def finish(self) -> None:
        """What the step returns becomes the state."""
        result = self._recording.result
        if result is not self._recording.state:
            self.emit.write_in_order(self._value(result), self.emit.address(self._state))

    def _after(self, tensor: Tensor, operation: Operation) -> Value:
        """What a tensor is once it was written: its values before are what the program has read,
        those after lie in memory alone. Where the state's do is known."""
        if tensor is not self._recording.state:
            return Missing(str(operation))
        for value in self._values.values():
            if isinstance(value, InOrder) and value.tensor is self._state:
                value.gone = True
        return InOrder(self._state)

    def _returned(self, operation: Operation) -> Any:
        given = (operation.arguments, operation.keywords)
        arguments, keywords = tree_map(self._value, given)
        held = [leaf for leaf in tree_leaves((arguments, keywords)) if isinstance(leaf, Value)]
        if operation.op.is_view and all(isinstance(value, Constant) for value in held):
            return _view(operation, arguments, keywords)
        missing = [value for value in held if isinstance(value, Missing)]
        if missing:
            raise CannotPrepare(f"it reads what {missing[0].operation} gives")
        if operation.op not in RULES:
            if operation.writes:
                raise CannotPrepare("the program has no instruction for it")
            return [Missing(str(operation))] * len(operation.results)
        return RULES[operation.op](self.emit, *arguments, **keywords)

    def _value(self, argument: Any) -> Any:
        if not isinstance(argument, Tensor):
            return argument
        if isinstance(argument, FakeTensor):
            return self._values[id(argument)]
        return Constant(argument)


def _written(operation: Operation) -> Iterator[Tensor]:
    """The pretended tensors that it writes into."""
    parameters = zip(operation.op._schema.arguments, operation.arguments, strict=False)
    for parameter, argument in parameters:
        if parameter.alias_info is not None and parameter.alias_info.is_write:
            yield from (leaf for leaf in tree_leaves(argument) if isinstance(leaf, FakeTensor))


def _has_shape(value: Feature | Read, tensor: Tensor) -> bool:
    """Whether the value is what torch got; a matrix is a map of one pixel a sample."""
    batch, channels, height, width = value.shape
    below, right = value.padded if isinstance(value, Read) else (0, 0)
    sizes = (height + below, width + right)
    return (batch, channels, *(sizes if tensor.dim() != 2 else ())) == tuple(tensor.shape)


def _view(operation: Operation, arguments: Any, keywords: Any) -> Any:
    """A view of what stays is what stays."""

    def tensor(value: Any) -> Any:
        return value.tensor if isinstance(value, Constant) else value

    with torch.no_grad():
        result = operation.op(*tree_map(tensor, arguments), **tree_map(tensor, keywords))
    return tree_map(lambda part: Constant(part) if isinstance(part, Tensor) else part, result)
