"""A step as the list of what torch dispatched while it ran once.

It runs on tensors that have shapes but no memory, so recording costs no arithmetic and changes
nothing: the state and the index are pretended, and all other tensors that the step reads or writes
(weights, tables, buffers, flags) stand in the list themselves, so that their addresses are known.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastddpm.engine.plan import CannotPrepare, Plan, Step
from fastddpm.ops.recording import recording

_INSIDE = (str(Path(torch.__file__).parent), __file__)


@dataclass(frozen=True)
class Operation:
    """One operation: its op, what it was given, the tensors it returned, and its place in the
    source."""

    op: torch._ops.OpOverload
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    results: tuple[Tensor, ...]
    where: str

    @property
    def tensors(self) -> Iterator[Tensor]:
        """The tensors it was given."""
        leaves = tree_leaves((self.arguments, self.keywords))
        return (leaf for leaf in leaves if isinstance(leaf, Tensor))

    @property
    def writes(self) -> bool:
        """Whether it writes into what it was given."""
        return self.op._schema.is_mutable

    def __str__(self) -> str:
        return f"{self.op} at {self.where}"


@dataclass(frozen=True)
class Recording:
    """All operations of a step in order. state, index: what stands for its arguments. result: what
    it returned."""

    operations: tuple[Operation, ...]
    state: Tensor
    index: Tensor
    result: Tensor

    def uses(self) -> Counter[int]:
        """How often each tensor, by its id, is read by what matters: the result, and what is
        written. Every result of an operation that is read counts itself once more for that."""
        counts: Counter[int] = Counter([id(self.result)])
        for operation in reversed(self.operations):
            if operation.writes or any(counts[id(result)] for result in operation.results):
                counts.update(id(tensor) for tensor in operation.tensors)
        return counts


def record(step: Step, plan: Plan) -> Recording:
    """Call the step once on pretended tensors.

    Raises CannotPrepare for a step whose course depends on a tensor's values. What the step raises
    by itself goes through.
    """
    pretended = FakeTensorMode(allow_non_fake_inputs=True)
    state = pretended.from_tensor(torch.empty(plan.shape, dtype=plan.dtype, device=plan.device))
    index = pretended.from_tensor(torch.empty(1, dtype=torch.int64, device=plan.device))
    recorder = _Recorder()
    try:
        with torch.inference_mode(False), torch.no_grad(), recording(), pretended, recorder:
            result = step(state, index)
    except (
        DataDependentOutputException,
        DynamicOutputShapeException,
        UnsupportedFakeTensorException,
        UnsupportedOperatorException,
    ) as error:
        raise CannotPrepare(
            f"the step cannot be recorded: it reads values of tensors ({error})"
        ) from error
    plan.check_step(result)
    return Recording(tuple(recorder.operations), state, index, result)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[Operation] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        returned = func(*args, **kwargs)
        results = tuple(leaf for leaf in tree_leaves(returned) if isinstance(leaf, Tensor))
        self.operations.append(Operation(func, args, kwargs, results, _place()))
        return returned


def _place() -> str:
    """The innermost line outside of torch that is running."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
