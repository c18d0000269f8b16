"""Settings: one frozen dataclass is the TOML file and the command-line flags at once.

A field's type, default and metadata (`help`, `unit`, `low`, `high`, `choices`, `group`) are
written once, in the dataclass; this file reads them.  A nested dataclass is a TOML table and a
prefix of the flag: `unet.block_out_channels` is `[unet] block_out_channels = [32, 64]` and
`--unet-block-out-channels 32,64`. Unknown names, wrong types and values out of range are
ValueErrors that say what was expected.
"""

import dataclasses
import difflib
import json
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Settings = TypeVar("Settings")
NONE_TYPE = type(None)


@dataclass(frozen=True)
class Setting:
    """One leaf field: its dotted name, resolved type, default and what its metadata says."""

    name: str
    hint: Any
    default: Any
    metadata: Mapping[str, Any]

    @property
    def flag(self) -> str:
        """The command-line spelling: `unet.norm_eps` is `--unet-norm-eps`."""
        return "--" + self.name.replace(".", "-").replace("_", "-")

    @property
    def help(self) -> str:
        """The field's help with choices, unit and range: `images in one step (images, >= 1)`."""
        notes = [", ".join(map(_spelled, self.choices)), self.metadata.get("unit", ""), self._range]
        text = self.metadata.get("help") or self.name.split(".")[-1].replace("_", " ")
        noted = ", ".join(note for note in notes if note)
        return f"{text} ({noted})" if noted else text

    @property
    def choices(self) -> tuple[str | None, ...]:
        """The values allowed, where they are a list."""
        if typing.get_origin(self.hint) is typing.Literal:
            return typing.get_args(self.hint)
        return tuple(self.metadata.get("choices", ()))

    @property
    def _range(self) -> str:
        low, high = self.metadata.get("low"), self.metadata.get("high")
        if low is not None and high is not None:
            return f"{low} to {high}"
        return f">= {low}" if low is not None else f"<= {high}" if high is not None else ""

    @property
    def kind(self) -> str:
        """The type in a reader's words: `integer`, `a|b|c`, `integer,...`."""
        return _describe(self.hint)


def leaves(cls: type, prefix: str = "") -> Iterator[Setting]:
    """Every leaf field of a settings dataclass, nested ones with dotted names, in order."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            yield from leaves(hint, f"{prefix}{field.name}.")
            continue
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        yield Setting(prefix + field.name, hint, default, field.metadata)


def build(cls: type[Settings], values: Mapping[str, Any], *, source: str = "settings") -> Settings:
    """A `cls` from a nested mapping (a parsed TOML file).

    Raises ValueError for an unknown key (naming near matches), a wrong type, a value out of range,
    or a missing field that has no default.
    """
    return _build(cls, values, source, "")


def _build(cls: type[Settings], values: Mapping[str, Any], source: str, prefix: str) -> Settings:
    # No TypeVar can say that cls is a dataclass.
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise ValueError(f"{source}: unknown setting {prefix}{key!s}{_near(key, fields)}")
    direct = {s.name: s for s in leaves(cls) if "." not in s.name}
    made: dict[str, Any] = {}
    for name, value in values.items():
        if name in direct:
            made[name] = convert(direct[name], value, f"{source}: {prefix}{name}")
        elif isinstance(value, Mapping):
            nested = typing.get_type_hints(cls)[name]
            made[name] = _build(nested, value, source, f"{prefix}{name}.")
        else:
            raise ValueError(f"{source}: {prefix}{name} is a table [{name}], got {value!r}")
    for name, setting in direct.items():
        if name not in made and setting.default is dataclasses.MISSING:
            raise ValueError(f"{source}: {prefix}{name} is missing ({setting.help})")
    return cls(**made)


def load(cls: type[Settings], path: Path | None, flags: Mapping[str, str | bool]) -> Settings:
    """Settings from a TOML file (or none), with `flags` (dotted name -> text) on top.

    Raises ValueError as `build` does, and for a file that is not TOML; OSError if unreadable.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not a TOML file: {error}") from error
    known = {s.name: s for s in leaves(cls)}
    for name, text in flags.items():
        if name not in known:
            raise ValueError(f"unknown setting {name}{_near(name, known)}")
        value = convert(known[name], text, known[name].flag, text=True)
        *parents, last = name.split(".")
        table = values
        for parent in parents:
            table = table.setdefault(parent, {})
        table[last] = value
    return build(cls, values, source=str(path) if path is not None else "settings")


def convert(setting: Setting, value: Any, where: str, *, text: bool = False) -> Any:
    """`value` as the setting's type, checked against its range; `text` allows a flag's spellings.

    Raises ValueError: `where: expected ..., got ...`.
    """
    try:
        made = _coerce(setting.hint, value, text)
    except (TypeError, ValueError):
        raise ValueError(f"{where}: expected {setting.kind}, got {value!r}") from None
    low, high = setting.metadata.get("low"), setting.metadata.get("high")
    for number in made if isinstance(made, tuple) else (made,):
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            continue
        # Written so that NaN, for which every comparison is false, is refused.
        inside = (low is None or number >= low) and (high is None or number <= high)
        if not inside:
            raise ValueError(f"{where}: {setting.help}: got {value!r}")
    if setting.choices and made not in setting.choices:
        choices = [_spelled(choice) for choice in setting.choices]
        near = _near(str(made), choices)
        raise ValueError(f"{where}: expected one of {', '.join(choices)}, got {made!r}{near}")
    return made


def convert_fields(settings: Any) -> None:
    """Brings each field of a new settings dataclass to its type, as a file's values are.

    For `__post_init__`. Raises ValueError as `convert` does, and for a nested dataclass that is
    something else.
    """
    cls = type(settings)
    for setting in leaves(cls):
        if "." not in setting.name:
            value = convert(setting, getattr(settings, setting.name), setting.name)
            object.__setattr__(settings, setting.name, value)
    for name, hint in typing.get_type_hints(cls).items():
        value = getattr(settings, name)
        if dataclasses.is_dataclass(hint) and not isinstance(value, typing.cast(type, hint)):
            kind = typing.cast(type, hint).__name__
            raise ValueError(f"{name}: expected a {kind}, got {value!r}")


def _spelled(choice: str | None) -> str:
    """A choice as files and flags spell it."""
    return "none" if choice is None else choice


def _coerce(hint: Any, value: Any, text: bool) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is NONE_TYPE:
        # TOML has no null: the word stands for it there and on the command line.
        return None if value is None or value == "none" else _refuse()
    if origin in (typing.Union, types.UnionType):
        # None first, text last: "none" is no string and "3" is a number where a number is allowed.
        order = {NONE_TYPE: 0, bool: 1, int: 2, float: 3, str: 5}
        for option in sorted(arguments, key=lambda a: order.get(a, 4)):
            try:
                return _coerce(option, value, text)
            except (TypeError, ValueError):
                continue
        raise ValueError
    if origin is typing.Literal:
        # Whether it is one of them is checked with the other choices.
        return value if isinstance(value, str) else _refuse()
    if origin is tuple:
        return _coerce_tuple(arguments, value, text)
    return _coerce_scalar(hint, value, text)


def _coerce_tuple(arguments: tuple[Any, ...], value: Any, text: bool) -> tuple[Any, ...]:
    if text:
        value = [part.strip() for part in value.strip("()[] ").split(",") if part.strip()]
    if not isinstance(value, (list, tuple)):
        raise TypeError
    hints = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
    if len(hints) != len(value):
        raise ValueError
    return tuple(_coerce(h, v, text) for h, v in zip(hints, value, strict=True))


def _coerce_scalar(hint: Any, value: Any, text: bool) -> Any:
    if hint is bool:
        if isinstance(value, bool):
            return value
        return value == "true" if text and value in ("true", "false") else _refuse()
    if hint in (int, float):
        if text:
            return hint(value)
        allowed = (int,) if hint is int else (int, float)
        return hint(value) if type(value) in allowed else _refuse()
    if hint is str and isinstance(value, str):
        return value
    return _refuse()


def _refuse() -> typing.NoReturn:
    raise TypeError


def _describe(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(a) for a in arguments)
    if origin is typing.Literal:
        return "text"
    if origin is tuple:
        return ",".join("..." if a is Ellipsis else _describe(a) for a in arguments)
    names = {int: "integer", float: "number", str: "text", bool: "true|false", NONE_TYPE: "none"}
    return names.get(hint, str(hint))


def _near(name: str, known: typing.Iterable[str]) -> str:
    near = difflib.get_close_matches(name, [str(k) for k in known], n=3)
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def as_dict(settings: Any) -> dict[str, Any]:
    """The settings as nested plain values that JSON and TOML can hold (tuples become lists)."""
    made: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(settings)))
    return made


def to_toml(settings: Any) -> str:
    """The settings as TOML text that `load` reads back; None is the word "none"."""
    values = as_dict(settings)
    tables = {k: v for k, v in values.items() if isinstance(v, dict)}
    lines = [_toml_line(k, v) for k, v in values.items() if k not in tables]
    for name, table in tables.items():
        lines += ["", f"[{name}]"]
        lines += [_toml_line(k, v) for k, v in table.items()]
    return "\n".join(lines) + "\n"


def _toml_line(name: str, value: Any) -> str:
    # JSON's spelling of strings, numbers, booleans and flat lists is valid TOML.
    value = "none" if value is None else value
    return f"{name} = {json.dumps(value, ensure_ascii=False)}"


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The dotted names at which two nested mappings differ, in order."""
    found: list[str] = []
    for key in dict.fromkeys([*old, *new]):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key}")
    return found
