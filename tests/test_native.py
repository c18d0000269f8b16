"""The native tests, tests/native, on the library that is installed.

Under sanitizers, and for aarch64 in an emulator, tests/native/run.sh builds and runs them.
"""

from __future__ import annotations

import importlib.resources
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from fastddpm.ops.library import LIBRARY_NAME, cpu_library

NATIVE = Path(__file__).parent / "native"


def test_every_instruction_agrees_with_its_reference(tmp_path: Path) -> None:
    if cpu_library().handle is None:
        pytest.skip(cpu_library().reason)
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    compiler = next(filter(None, (shutil.which(name) for name in names if name)), None)
    if compiler is None:
        pytest.skip("no C++ compiler: c++, g++ or clang++")
    library = Path(str(importlib.resources.files("fastddpm") / LIBRARY_NAME))
    driver = tmp_path / "driver"
    subprocess.run(
        [
            *(compiler, "-std=c++20", "-O1", "-pthread", "-o", str(driver)),
            *sorted(str(source) for source in NATIVE.glob("*.cpp")),
            *(str(library), f"-Wl,-rpath,{library.parent}"),
        ],
        check=True,
    )
    done = subprocess.run([driver], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
