"""Have a model's weights changed? A captured graph reads them where they lay when it was captured.

the address of a tensor changed  ->  a graph still reads the old one: capture again
only the values changed          ->  a graph sees them; copies made of the weights do not

Of a module that is told at a glance (glance.py) where nothing has; else things are told by name.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastddpm.engine.glance import Glance


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


@dataclass
class Fingerprint:
    """What a model reads, as it was: ``Fingerprint.of(model)``.

    It keeps the weights' memory from being freed, so that no others can come to lie at the same
    address unnoticed.

    torch counts the writes to a tensor, but not those through ``parameter.data`` nor those of fused
    optimizers: these are not seen. Nor is what a module reads of a helper object that is no module,
    or of a global variable.
    """

    source: Any
    values: bool
    marks: dict[str, Any]
    storages: tuple[torch.UntypedStorage, ...]
    glance: Glance | None
    ignored: frozenset[str] = frozenset()

    @classmethod
    def of(cls, model: Any, *, values: bool = False) -> Fingerprint:
        """Of every parameter and buffer of a module, or of the modules and tensors that any other
        callable holds: a bound method, a partial, a function's closure and globals, an object's
        attributes; in lists, tuples and dictionaries, too.

        values: of numbers, strings and None held in the same places as well, which a captured graph
        has read once and for all, and of a module's attributes: tensors that are neither parameters
        nor buffers, numbers, strings.
        """
        parts = dict(_read(model, values))
        tensors = [part for part in parts.values() if isinstance(part, Tensor)]
        marks = {name: _mark(part) for name, part in parts.items()}
        storages = tuple(t.untyped_storage() for t in tensors)
        glance = Glance(model) if _can_glance(model) and not values else None
        return cls(model, values, marks, storages, glance)

    def changed(self) -> str | None:
        """The name of the first thing that was written, replaced, added or removed since."""
        if self.glance is not None and not self.glance.changed():
            return None
        name = self._first_difference(lambda mark: mark)
        if name is None and self.glance is not None:
            # Other modules hold the same weights.
            self.glance = Glance(self.source)
        return name

    def moved(self) -> str | None:
        """The name of the first tensor that lies elsewhere, or of the first thing that is another,
        was added or removed since; a tensor that was only written does not count."""
        if self.glance is not None and not self.glance.moved():
            return None
        return self._first_difference(
            lambda mark: mark._replace(version=None) if isinstance(mark, _Mark) else mark
        )

    def settle(self) -> None:
        """The model has run since ``of``: what changed by that, as a map that it keeps for others
        to look at, tells nothing of its weights and is not looked at from now on."""
        self.ignored |= set(self._differences(lambda mark: mark))

    def _first_difference(self, view: Callable[[Any], Any]) -> str | None:
        return next(self._differences(view), None)

    def _differences(self, view: Callable[[Any], Any]) -> Iterator[str]:
        now = {name: _mark(part) for name, part in _read(self.source, self.values)}
        for name in (*self.marks, *(name for name in now if name not in self.marks)):
            before, after = self.marks.get(name, _ABSENT), now.get(name, _ABSENT)
            same = type(before) is type(after) and view(before) == view(after)
            if not same and name not in self.ignored:
                yield name


_ABSENT = object()
_VALUES = (bool, int, float, complex, str, type(None))
_CONTAINERS = (list, tuple, dict)


def _can_glance(model: Any) -> bool:
    """Whether it is a module whose parts hold their tensors in dictionaries, as scripted ones do
    not."""
    return isinstance(model, nn.Module) and not any(
        isinstance(part, torch.jit.ScriptModule) for part in model.modules()
    )


def _mark(part: Any) -> Any:
    return _Mark.of(part) if isinstance(part, Tensor) else part


def _read(model: Any, values: bool) -> Iterator[tuple[str, Any]]:
    """(name, tensor or value) of everything that a model reads."""
    waiting, seen = [("", model)], set()
    while waiting:
        path, held = waiting.pop(0)
        if isinstance(held, _VALUES):
            if values:
                yield path, held
            continue
        if id(held) in seen:
            continue
        seen.add(id(held))
        prefix = f"{path}." if path else ""
        if isinstance(held, Tensor):
            yield path or "tensor", held
        elif isinstance(held, nn.Module):
            for name, tensor in (*held.named_parameters(), *held.named_buffers()):
                yield prefix + name, tensor
            waiting += [(prefix + name, part) for name, part in _attributes(held, values)]
        elif isinstance(held, _CONTAINERS):
            items = held.items() if isinstance(held, dict) else enumerate(held)
            waiting += [(f"{prefix}{k}", part) for k, part in items if _matters(part)]
        else:
            waiting += _held(path, held)


def _attributes(module: nn.Module, values: bool) -> Iterator[tuple[str, Any]]:
    """What the modules hold beside parameters, buffers and each other: tensors, plain values."""
    if not values:
        return
    for path, part in module.named_modules():
        for name, held in vars(part).items():
            # Names that begin so are torch's own, but for tensors; the mode is set by who runs it.
            plain = name[0] != "_" and name != "training"
            if isinstance(held, Tensor) or (plain and isinstance(held, _VALUES + _CONTAINERS)):
                yield f"{path}.{name}" if path else name, held


def _held(path: str, holder: Any) -> list[tuple[str, Any]]:
    """What a callable holds, one level deep: (path, thing); only what matters."""
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
    return [(prefix + name, part) for name, part in parts.items() if _matters(part)]


def _matters(part: Any) -> bool:
    """Tensors, modules, callables outside of torch, and what may be or hold one or a value."""
    kinds = (Tensor, nn.Module, functools.partial, types.MethodType)
    if isinstance(part, kinds + _VALUES + _CONTAINERS):
        return True
    module = getattr(part, "__module__", None) or "torch"
    return callable(part) and not isinstance(part, type) and module.partition(".")[0] != "torch"


def _content(cell: Any) -> Any:
    """What a closure's cell holds; None while it is empty."""
    try:
        return cell.cell_contents
    except ValueError:
        return None
