"""Have a model's weights changed? A captured graph reads them where they lay when it was captured.

the address of a tensor changed  ->  a graph still reads the old one: capture again
only the values changed          ->  a graph sees them; copies made of the weights do not
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class _Mark(NamedTuple):
    """What tells one tensor's memory and values from another's, without reading them."""

    address: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    version: int | None

    @classmethod
    def of(cls, tensor: Tensor) -> _Mark:
        # torch counts the writes to a tensor, but not to one made in inference mode.
        version = None if tensor.is_inference() else tensor._version
        layout = tuple(tensor.shape), tensor.stride()
        return cls(tensor.data_ptr(), *layout, tensor.dtype, tensor.device, version)


@dataclass(frozen=True)
class Fingerprint:
    """The weights of a model as they were: ``Fingerprint.of(model)``.

    It keeps their memory from being freed, so that no other weights can come to lie at the same
    address unnoticed.

    A write to ``parameter.data`` is not seen, because torch does not count it.
    """

    source: Any
    marks: dict[str, _Mark]
    storages: tuple[torch.UntypedStorage, ...]

    @classmethod
    def of(cls, model: Any) -> Fingerprint:
        """Of every parameter and buffer of a module, or of the modules and tensors that any other
        callable holds: a bound method, a partial, a function's closure and globals, an object's
        attributes."""
        tensors = dict(_tensors(model))
        marks = {name: _Mark.of(tensor) for name, tensor in tensors.items()}
        return cls(model, marks, tuple(t.untyped_storage() for t in tensors.values()))

    def changed(self) -> str | None:
        """The name of the first tensor that was written, replaced, added or removed since."""
        return self._first_difference(lambda mark: mark)

    def moved(self) -> str | None:
        """The name of the first tensor that lies elsewhere, was added or removed since; a tensor
        that was only written does not count."""
        return self._first_difference(lambda mark: mark._replace(version=None))

    def _first_difference(self, view: Any) -> str | None:
        now = {name: _Mark.of(tensor) for name, tensor in _tensors(self.source)}
        for name in (*self.marks, *(name for name in now if name not in self.marks)):
            before, after = self.marks.get(name), now.get(name)
            if before is None or after is None or view(before) != view(after):
                return name
        return None


def _tensors(model: Any) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of everything that a model reads its weights from."""
    waiting, seen = [("", model)], set()
    while waiting:
        path, held = waiting.pop(0)
        if id(held) in seen:
            continue
        seen.add(id(held))
        if isinstance(held, Tensor):
            yield path or "tensor", held
        elif isinstance(held, nn.Module):
            prefix = f"{path}." if path else ""
            for name, tensor in (*held.named_parameters(), *held.named_buffers()):
                yield prefix + name, tensor
        else:
            waiting += _held(path, held)


def _held(path: str, holder: Any) -> list[tuple[str, Any]]:
    """What a callable holds, one level deep: (path, thing); only what may hold weights."""
    if isinstance(holder, functools.partial):
        parts = {"func": holder.func, **holder.keywords}
        parts |= {str(k): argument for k, argument in enumerate(holder.args)}
    elif isinstance(holder, types.FunctionType):
        code, cells = holder.__code__, holder.__closure__ or ()
        parts = {name: holder.__globals__.get(name) for name in code.co_names}
        parts |= dict(zip(code.co_freevars, map(_content, cells), strict=True))
    elif isinstance(holder, types.MethodType):
        parts = {"self": holder.__self__, "method": holder.__func__}
    else:
        parts = {**getattr(holder, "__dict__", {}), "call": type(holder).__call__}
    prefix = f"{path}." if path else ""
    return [(prefix + name, part) for name, part in parts.items() if _may_hold_weights(part)]


def _may_hold_weights(part: Any) -> bool:
    """Tensors, modules, and callables outside of torch."""
    if isinstance(part, Tensor | nn.Module | functools.partial | types.MethodType):
        return True
    module = getattr(part, "__module__", None) or "torch"
    return callable(part) and not isinstance(part, type) and module.partition(".")[0] != "torch"


def _content(cell: Any) -> Any:
    """What a closure's cell holds; None while it is empty."""
    try:
        return cell.cell_contents
    except ValueError:
        return None
