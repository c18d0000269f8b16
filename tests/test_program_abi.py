"""The ctypes mirrors of the program's structs agree with kernels/include/fastddpm.h."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from enum import IntEnum
from pathlib import Path

import pytest
import torch
from cpu_instructions import as_map, empty_map, from_map

from fastddpm.ops import program_abi
from fastddpm.ops.program_abi import Arguments, Op

HEADER = Path(__file__).parents[1] / "kernels/include/fastddpm.h"
TEXT = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.S)
# No struct of a program: torch itself makes one, test_ops_torch_normal.py compares them.
OPAQUE = {"mersenne"}
STRUCTS = {
    name: body
    for body, name in re.findall(r"typedef struct \{(.*?)\} fastddpm_(\w+);", TEXT, re.S)
    if name not in OPAQUE
}
ENUMS = [
    found for found in vars(program_abi).values() if getattr(found, "__base__", None) is IntEnum
]
MIRRORS = {
    name: getattr(program_abi, "".join(word.capitalize() for word in name.split("_")))
    for name in STRUCTS
}
SCALARS = {
    "int64_t": ctypes.c_int64,
    "int32_t": ctypes.c_int32,
    "double": ctypes.c_double,
    "void": None,
}


def type_of(text: str) -> type | None:
    """The mirror of a C type."""
    if "*" in text:
        return ctypes.c_void_p
    name = text.strip()
    return SCALARS[name] if name in SCALARS else MIRRORS[name.removeprefix("fastddpm_")]


def fields_of(body: str) -> list[tuple[str, object]]:
    """(name, type) of each field of a struct, in order."""
    found = []
    for declaration in re.findall(r"([^;]+);", body):
        kind, names = re.fullmatch(r"\s*((?:const )?\w+)\b(.*)", declaration, re.S).groups()
        for stars, name, count in re.findall(r"(\*?)\s*(\w+)(?:\[(\d+)\])?", names):
            field = type_of(kind + stars)
            found.append((name, field * int(count) if count else field))
    return found


@pytest.mark.parametrize("name", STRUCTS)
def test_fields(name: str) -> None:
    assert list(MIRRORS[name]._fields_) == fields_of(STRUCTS[name])


def test_every_operation_has_its_struct() -> None:
    assert {kind.op for kind in Arguments.__subclasses__()} == set(Op)
    for kind in Arguments.__subclasses__():
        assert kind.__name__.upper() == kind.op.name


@pytest.mark.parametrize("enum", ENUMS, ids=lambda enum: enum.__name__)
def test_enums(enum: type[IntEnum]) -> None:
    prefix = f"FASTDDPM_{enum.__name__.upper()}_"
    (body,) = [body for body in re.findall(r"enum \{(.*?)\};", TEXT, re.S) if prefix in body]
    names = [re.sub(r"\s*=.*", "", entry).strip() for entry in body.split(",")]
    names = [name for name in names if name.startswith(prefix)]
    assert names == [prefix + member.name for member in enum]
    assert [member.value for member in enum] == list(range(len(names)))


@pytest.mark.parametrize("name", program_abi.FUNCTIONS)
def test_functions(name: str) -> None:
    result, parameters = re.search(rf"FASTDDPM_API ([^;]*?){name}\((.*?)\);", TEXT, re.S).groups()
    types = [type_of(parameter.rsplit(" ", 1)[0]) for parameter in parameters.split(",")]
    assert program_abi.FUNCTIONS[name] == (type_of(result), types)


def test_the_alignment() -> None:
    assert f"#define FASTDDPM_ALIGN {program_abi.ALIGN}\n" in TEXT


def test_a_compiler_sees_the_same_offsets(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    lines = ["#include <stddef.h>", f'#include "{HEADER}"']
    for name, mirror in MIRRORS.items():
        lines.append(f"_Static_assert(sizeof(fastddpm_{name}) == {ctypes.sizeof(mirror)}, ``);")
        for field, *_ in mirror._fields_:
            place = f"offsetof(fastddpm_{name}, {field}) == {getattr(mirror, field).offset}"
            lines.append(f"_Static_assert({place}, ``);")
    source = tmp_path / "offsets.c"
    source.write_text("\n".join(lines).replace("``", '""') + "\n")
    command = [compiler, "-std=c11", "-Wall", "-Werror", "-fsyntax-only", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_map_goes_there_and_back() -> None:
    for x in (torch.randn(2, 5, 3, 4), torch.randn(2, 7, 19)):
        made = as_map(x)
        assert made.stride % program_abi.ALIGN == 0 and made.address % 64 == 0
        assert torch.equal(from_map(made), x)
        assert made.pixels[:, made.channels :].isnan().all()
    assert from_map(empty_map(1, 3, 2, 2)).isnan().all()


def test_a_write_outside_of_a_map_is_caught() -> None:
    for outside in (-1, 1):
        made = empty_map(1, 3, 2, 2)
        place = made.address + 4 * (outside if outside < 0 else made.buffer.count)
        ctypes.c_float.from_address(place).value = 0.0
        with pytest.raises(AssertionError, match="written"):
            from_map(made)
