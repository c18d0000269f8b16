"""libfastddpm_cpu: how it is found, what it refuses, and that its header and Python agree."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from op_backends import LIBRARY, needs_library, same_bits

from fastddpm import noise, ops
from fastddpm.kernels.ancestral_step.reference import STEP_COLUMNS
from fastddpm.noise import Purpose
from fastddpm.ops import library, program_abi

ROOT = Path(__file__).parents[1]


@needs_library
def test_null_pointers_and_bad_codes_are_refused() -> None:
    with pytest.raises(RuntimeError, match="invalid argument"):
        LIBRARY.call("fastddpm_normal", None, None, 1, 4, 0, None, 1, 0, 1)
    with pytest.raises(RuntimeError, match="invalid argument"):
        LIBRARY.call("fastddpm_normal", None, None, -1, 4, 0, None, 1, 0, 1)
    with pytest.raises(ValueError, match="instruction set: expected one of"):
        LIBRARY.use_isa("mmx")
    assert LIBRARY.handle is not None
    assert LIBRARY.handle.fastddpm_use_isa(b"mmx") != 0
    assert LIBRARY.handle.fastddpm_error_message(77) == b"unknown status"


def test_header_and_python_agree() -> None:
    header = (ROOT / "kernels/include/fastddpm.h").read_text()
    assert f"#define FASTDDPM_ABI_VERSION {library.ABI_VERSION}\n" in header
    columns = re.search(r"FASTDDPM_X0_FROM_X = 0,(.*?)FASTDDPM_STEP_COLUMNS", header, re.S)
    assert columns is not None
    names = ["FASTDDPM_X0_FROM_X", *re.findall(r"FASTDDPM_\w+", columns[1])]
    assert names == [f"FASTDDPM_{name.upper()}" for name in STEP_COLUMNS]
    functions = set(re.findall(r"(fastddpm_\w+)\(", header.split("extern")[1]))
    program = {name: arguments for name, (_, arguments) in program_abi.FUNCTIONS.items()}
    declared = {"fastddpm_abi_version", "fastddpm_error_message", *library._SIGNATURES, *program}
    assert functions == declared | {"fastddpm_isa_name", "fastddpm_isa_list"}
    for name, types in (library._SIGNATURES | program).items():
        parameters = re.search(rf"{name}\((.*?)\);", header, re.S)
        assert parameters is not None and parameters[1].count(",") + 1 == len(types), name


def test_python_constants_are_in_the_cpp_twin() -> None:
    """A coefficient changed on one side shows here by name before it shows in the bits."""
    source = (ROOT / "kernels/common/philox.h").read_text()
    for coefficient in (*noise.LOG, *noise.SIN, *noise.COS, noise.MINUS_TWO_LN_2):
        assert re.search(rf"{re.escape(repr(coefficient))}f\b", source), coefficient


def status_with(**environment: str) -> subprocess.CompletedProcess[str]:
    code = "from fastddpm import ops; print(ops.cpu_library_status())"
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@needs_library
def test_the_environment_can_lower_the_instruction_set() -> None:
    assert "uses baseline of baseline" in status_with(FASTDDPM_CPU_ISA="baseline").stdout
    refused = status_with(FASTDDPM_CPU_ISA="mmx")
    assert refused.returncode != 0
    assert "FASTDDPM_CPU_ISA" in refused.stderr and "'mmx'" in refused.stderr


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "LIBRARY_NAME", "libabsent.so")
    library.cpu_library.cache_clear()
    try:
        call = (1, torch.arange(2), 3, (1, 4, 4), Purpose.REVERSE)
        assert same_bits(ops.normal(*call), noise.normal(*call))
        assert ops.cpu_library_status().startswith("no CPU library: libabsent.so is not installed")
        with pytest.raises(ValueError, match=r"backend 'cpu' cannot run.*C\+\+ compiler"):
            ops.normal(*call, backend="cpu")
    finally:
        monkeypatch.undo()
        library.cpu_library.cache_clear()


@needs_library
def test_another_abi_version_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    built = library.ABI_VERSION
    monkeypatch.setattr(library, "ABI_VERSION", 99)
    library.cpu_library.cache_clear()
    try:
        assert f"ABI version {built}, this package needs 99" in ops.cpu_library_status()
    finally:
        monkeypatch.undo()
        library.cpu_library.cache_clear()


def test_a_library_of_another_kind_does_not_load(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / library.LIBRARY_NAME
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(library.importlib.resources, "files", lambda package: tmp_path)
    library.cpu_library.cache_clear()
    try:
        assert "does not load" in ops.cpu_library_status()
        with pytest.raises(OSError):
            ctypes.CDLL(str(broken))
    finally:
        monkeypatch.undo()
        library.cpu_library.cache_clear()
