"""A recorded capture: the calls in order, and their replay into the same storages.

A capture executes nothing. Here the ops do run while they are recorded, because later ones need
shapes (and indices in range); at the end every tensor that existed before is put back as it was,
and every tensor that the capture made holds garbage until a replay writes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from capture import forbidden

# All bits set: NaN in every floating type, -1 in the integers.
GARBAGE = 0xFF
EMPTY = ("aten::empty", "aten::new_empty")


@dataclass
class Call:
    """One recorded call. ``made`` are its outputs that lie in new memory, in the order of
    ``tree_leaves``; None stands for an output that is an argument or a view of one."""

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    made: list[Tensor | None]

    @property
    def name(self) -> str:
        """The op's, "aten::add"; that of a compiled step."""
        op = isinstance(self.func, torch._ops.OpOverload)
        return self.func._schema.name if op else "compiled step"

    @property
    def is_silent(self) -> bool:
        """Whether it runs nothing on a device: it makes a view, or memory without contents."""
        if not isinstance(self.func, torch._ops.OpOverload) or self.func._schema.is_mutable:
            return False
        return all(tensor is None for tensor in self.made) or self.name.startswith(EMPTY)


@dataclass
class Recording:
    """The calls of one capture. ``broken`` is why the capture became invalid, or None."""

    calls: list[Call] = field(default_factory=list)
    broken: str | None = None
    _before: dict[int, tuple[Any, Any]] = field(default_factory=dict)
    _made: dict[int, tuple[Any, torch.dtype]] = field(default_factory=dict)

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Record an op and run it, so that what follows knows its outputs."""
        for tensor in _written(func, args, kwargs):
            self._keep(tensor)
        inputs = {_key(tensor) for tensor in tensors_of((args, kwargs))}
        outputs = func(*args, **kwargs)
        self.add(func, args, kwargs, outputs, inputs)
        return outputs

    def add(self, func: Any, args: Any, kwargs: Any, outputs: Any, inputs: set[int]) -> None:
        """Record a call whose outputs are known."""
        made = [None if _key(tensor) in inputs else tensor for tensor in tensors_of(outputs)]
        for tensor in made:
            if tensor is not None:
                self._made[_key(tensor)] = (storage_of(tensor), tensor.dtype)
        self.calls.append(Call(func, args, kwargs, made))

    def finish(self) -> None:
        """Make it as if nothing had run."""
        for storage, before in self._before.values():
            storage.copy_(before)
        self._before.clear()
        self._spoil()

    @torch.no_grad()
    def replay(self) -> None:
        """Run the calls on the storages of the capture. What the capture made is garbage at first,
        as when another graph of the pool ran in between."""
        with _disable_current_modes():
            self._spoil()
            for call in self.calls:
                if call.is_silent:
                    continue
                outputs = tensors_of(call.func(*call.args, **call.kwargs))
                for into, value in zip(call.made, outputs, strict=True):
                    if into is not None:
                        into.copy_(value)

    def _keep(self, tensor: Tensor) -> None:
        key, storage = _key(tensor), storage_of(tensor)
        if key not in self._made and key not in self._before:
            self._before[key] = (storage, storage.clone())

    def _spoil(self) -> None:
        for storage, dtype in self._made.values():
            storage.fill_(1 if dtype == torch.bool else GARBAGE)


class RecordMode(TorchDispatchMode):
    """Records every op inside, and refuses what a capture refuses."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self._recording = recording

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        why = forbidden.waits(func, args)
        if why is not None:
            self._recording.broken = f"{func}: {why}"
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}: {why}")
        if forbidden.draws(func, args, kwargs):
            self._recording.broken = f"{func}: it draws random numbers"
            raise RuntimeError(f"{func} draws random numbers while the stream is capturing")
        return self._recording.run(func, args, kwargs)


def tensors_of(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def storage_of(tensor: Tensor) -> Any:
    return tensor.untyped_storage()


def _key(tensor: Tensor) -> int:
    return storage_of(tensor)._cdata


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The arguments that the op's schema says it writes."""
    names = [argument.name for argument in func._schema.arguments]
    given = dict(zip(names, args, strict=False)) | kwargs
    written = [
        given.get(argument.name)
        for argument in func._schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    return tensors_of(written)
