"""Torch files whose pickles call something, or never end."""

from __future__ import annotations

import argparse
import itertools
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hostile_cases import HUGE, TRACE, Make, add, case
from port_references import numbered_state, pesser_state


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


def _of_names(module: str, name: str) -> Any:
    """An object that pickles as module.name, whatever there is."""
    stand_in = type(name, (), {"__module__": module, "__qualname__": name})
    return stand_in


def _raw(folder: Path, program: bytes, name: str = "data.pkl") -> Path:
    """A torch archive with this pickle program in it."""
    path = folder / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"model/{name}", program)
        archive.writestr("model/version", "3\n")
        archive.writestr("model/byteorder", "little")
    return path


def _global(module: str, name: str, arguments: bytes) -> bytes:
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + arguments + b"R."


_TOUCH = f"touch {TRACE}".encode()
_ONE_STRING = b"X" + struct.pack("<I", len(_TOUCH)) + _TOUCH + b"\x85"
_ONE_NUMBER = b"\x8a\x06" + HUGE.to_bytes(6, "little") + b"\x85"

for module, name in (
    ("os", "system"),
    ("posix", "system"),
    ("subprocess", "getoutput"),
    ("builtins", "eval"),
    ("torch.hub", "load"),
    ("torch._utils", "_import_dotted_name"),
    ("torch.storage", "_load_from_bytes"),
    ("fastddpm.cli", "main"),
):
    program = _global(module, name, _ONE_STRING)
    add(f"pickle: {module}.{name}", lambda folder, program=program: _raw(folder, program))
for module, name in (
    ("builtins", "bytearray"),
    ("torch", "FloatTensor"),
    ("torch", "FloatStorage"),
    ("torch.storage", "UntypedStorage"),
    ("torch", "Size"),
    ("collections", "Counter"),
    ("torch", "Tensor"),
    ("torch", "empty"),
    ("builtins", "range"),
    ("builtins", "set"),
):
    program = _global(module, name, _ONE_NUMBER)
    add(f"pickle: {module}.{name}(10^12)", lambda folder, p=program: _raw(folder, p))

_STACK = b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c" + bytes([len(_TOUCH)]) + _TOUCH + b"\x85R."
add("pickle: by names on the stack", lambda folder: _raw(folder, _STACK))
add("pickle: INST", lambda folder: _raw(folder, b"(S'" + _TOUCH + b"'\nios\nsystem\n."))
add("pickle: OBJ", lambda folder: _raw(folder, b"(cos\nsystem\nS'" + _TOUCH + b"'\no."))
add("pickle: an extension", lambda folder: _raw(folder, b"\x80\x02\x82\x01."))
add("pickle: no end", lambda folder: _raw(folder, b"\x80\x02" + b"]" * 100_000))
_DEEP = b"\x80\x02" + b"]" * 10**6 + b"a" * (10**6 - 1) + b"."
add("pickle: deep", lambda folder: _raw(folder, _DEEP))
add("pickle: a string of 4 GB", lambda folder: _raw(folder, b"\x80\x02X\xff\xff\xff\xff."))
add("pickle: nothing", lambda folder: _raw(folder, b""))
add("pickle: a dict in itself", lambda folder: _raw(folder, b"\x80\x02}q\0X\x05\0\0\0modelh\0s."))


# Pairs, each of the one before twice, where they are hashed, printed or only deep.
_PAIRS, _TWICE = b"\x80\x02K\x01\x85", b"q\x02h\x02\x86"
_NESTED = {
    "as a key": b"}" + _PAIRS[2:] + _TWICE * 40 + b"K\x01s.",
    "as a storage": _PAIRS + _TWICE * 40 + b"Q.",
    "as a function": _PAIRS + _TWICE * 40 + b")R.",
    "a million deep, as a key": b"}K\x01" + b"\x85" * 10**6 + b"K\x01s.",
}
for what, program in _NESTED.items():
    add(f"pickle: tuples {what}", lambda folder, program=program: _raw(folder, program))

# A list q1 of 10^5 numbers, of which a list holds 10^5 copies.
_LIST = b"\x80\x02](" + b"K\x01" * 10**5 + b"eq\x01"
_COPY = b"ctorch\nSize\nq\x02](" + b"h\x02h\x01\x85R" * 10**5 + b"e\x86."
add("pickle: copies of a list", lambda folder: _raw(folder, _LIST + _COPY))
# Lists, each of which gets the next one twice when that one is still empty.
_LATE = b"".join(b"]q" + bytes([i]) for i in range(41)) + b"".join(
    b"h" + bytes([i]) + b"h" + bytes([i + 1]) + b"ah" + bytes([i + 1]) + b"a" for i in range(40)
)
add("pickle: lists filled late", lambda folder: _raw(folder, b"\x80\x02" + _LATE + b"h\0)R."))

_BYTES = _global("__builtin__", "bytearray", b"J" + struct.pack("<i", 2 * 10**9) + b"\x85")
for name in ("data.PKL", "DATA.pkl"):
    add(f"pickle: 2 GB in {name}", lambda folder, name=name: _raw(folder, _BYTES, name))


@case("a storage of 1 MB under a thousand names")
def _cases_of_a_name(folder: Path) -> Path:
    """Keys that differ by the case of their letters: torch reads the one storage for each."""
    path = folder / "model.pt"
    names = ["".join(letters) for letters in itertools.product("aA", repeat=10)]
    torch.save({f"temb.{name}": torch.zeros(1) for name in names}, path)
    with zipfile.ZipFile(path) as archive:
        program = archive.read("model/data.pkl")
    for i, name in enumerate(names):
        program = program.replace(_text(str(i)), _text(name))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", program.replace(b"K\x01t", b"J\0\0\4\0t"))
        archive.writestr("model/version", "3\n")
        archive.writestr("model/byteorder", "little")
        archive.writestr(f"model/data/{names[0]}", bytes(2**20))
    return path


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def _with(contents: Callable[[Any], Any], legacy: bool) -> Make:
    def make(folder: Path) -> Path:
        import os

        path = folder / "model.pt"
        called = contents(Call(os.system, f"touch {TRACE}"))
        torch.save(called, path, _use_new_zipfile_serialization=not legacy)
        return path

    return make


_PLACES: dict[str, Callable[[Any], Any]] = {
    "pesser": lambda call: pesser_state(ch_mult=(1,)) | {"logvar": call},
    "ermongroup": lambda call: [pesser_state(ch_mult=(1,)), call, 1, 2],
    "pytorch-ddpm": lambda call: {"net_model": numbered_state(ch_mult=(1,)), "optim": call},
    "lucidrains": lambda call: {"model": {"betas": torch.ones(3)}, "scaler": call},
    "OpenAI": lambda call: {"input_blocks.0.0.weight": call},
    "Lightning": lambda call: {"state_dict": pesser_state(ch_mult=(1,)), "callbacks": [call]},
}
for place, contents in _PLACES.items():
    add(f"a call in a file of {place}", _with(contents, legacy=False))
    add(f"a call in an old file of {place}", _with(contents, legacy=True))


@case("settings of a training script")
def _namespace(folder: Path) -> Path:
    torch.save({"model": pesser_state(), "args": argparse.Namespace(lr=1)}, folder / "model.pt")
    return folder / "model.pt"


@case("a name of 10 MB")
def _long_name(folder: Path) -> Path:
    torch.save(pesser_state() | {"x" * 10**7: torch.zeros(1)}, folder / "model.pt")
    return folder / "model.pt"


@case("only names of 10 MB")
def _long_names(folder: Path) -> Path:
    torch.save({"x" * 10**7: torch.zeros(1)}, folder / "model.pt")
    return folder / "model.pt"


_COLOURS = b"\x80\x02cos\n\x1b[31msystem" + b"x" * 10**5 + b"\n."
add("pickle: a long name that colours the terminal", lambda folder: _raw(folder, _COLOURS))


@case("a whole module")
def _module(folder: Path) -> Path:
    torch.save(torch.nn.Linear(2, 2), folder / "model.pt")
    return folder / "model.pt"


@case("a plain pickle")
def _plain(folder: Path) -> Path:
    import os

    (folder / "model.pt").write_bytes(pickle.dumps(Call(os.system, f"touch {TRACE}")))
    return folder / "model.pt"
