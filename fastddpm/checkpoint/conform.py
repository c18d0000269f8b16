"""Plain values from a file against the type hints of the dataclass that they fill.

JSON has lists for tuples and one number type; anything else that differs from the hint is the
file's mistake, and is said with the field's name, what was expected and what came.
"""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

Settings = TypeVar("Settings")


def conform(cls: type[Settings], values: Mapping[str, Any], source: str) -> Settings:
    """`cls(**values)` with every value checked, and a ValueError for a field without a value."""
    hints = typing.get_type_hints(cls)
    # No TypeVar can say that cls is a dataclass.
    needed = [
        f.name
        for f in fields(cls)  # type: ignore[arg-type]
        if f.default is MISSING and f.default_factory is MISSING and f.name not in values
    ]
    if needed:
        raise ValueError(f"{source}: expected a value for {', '.join(needed)}, found none")
    read = {key: _value(value, hints[key], f"{source}: {key}") for key, value in values.items()}
    return cls(**read)


def _value(value: Any, hint: Any, name: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _any_of(value, arguments, hint, name)
    # Neither NaN and infinity, which JSON's readers let pass, nor integers that no float can hold.
    if hint is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if hint is type(None) and value is None:
        return None
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_value(item, arguments[0], name) for item in value)
    # type() and not isinstance: True is an int to Python and not to a config.
    if origin is None and type(value) is hint:
        return value
    raise ValueError(f"{name}: expected {_spell(hint)}, found {brief(value)}")


def _any_of(value: Any, hints: tuple[Any, ...], whole: Any, name: str) -> Any:
    for hint in hints:
        try:
            return _value(value, hint, name)
        except ValueError:
            continue
    raise ValueError(f"{name}: expected {_spell(whole)}, found {brief(value)}")


def brief(value: Any) -> str:
    """A value as a message shows it: what came, but not all of a hostile file."""
    try:
        text = repr(value)
    # An integer of more digits than Python prints, or lists too deep.
    except (ValueError, RecursionError):
        return f"a {type(value).__name__} too large to print"
    return text if len(text) <= 200 else f"{text[:200]}..."


def _spell(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
