"""The wheel: what is in it, that it works outside of the source tree, and without a compiler."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from fastddpm.ops.library import LIBRARY_NAME, cpu_library

ROOT = Path(__file__).parents[1]
PACKAGED = ("CMakeLists.txt", "LICENSE", "README.md", "pyproject.toml", "fastddpm", "kernels")

# Looked up and not imported: importing pip takes setuptools' distutils away from torch.compile.
for needed in ("pip", "scikit-build-core"):
    if not list(metadata.distributions(name=needed)):
        pytest.skip(f"no {needed}: pip install '.[test]'", allow_module_level=True)


def run(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def build_wheel(folder: Path, **environment: str) -> tuple[Path, str]:
    """A wheel built from a copy of the tree, and what the build said."""
    source = folder / "source"
    source.mkdir()
    for name in PACKAGED:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.so")
            shutil.copytree(ROOT / name, source / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, source)
    done = run(
        *(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-v"),
        *("--wheel-dir", str(folder), str(source)),
        cwd=folder,
        **environment,
    )
    (wheel,) = folder.glob("*.whl")
    return wheel, done.stdout + done.stderr


def install(wheel: Path, target: Path) -> Path:
    pip = (sys.executable, "-m", "pip", "install", "--no-deps", "--no-index")
    run(*pip, "--target", str(target), str(wheel), cwd=target.parent)
    return target


def python(target: Path, code: str, cwd: Path) -> str:
    """Run code with `target` first on the path and without any editable install's import hook."""
    paths = [str(target), *site.getsitepackages()]
    # -S: no .pth file is read, and an editable install's hook comes from one.
    program = f"import sys; sys.path[1:1] = {paths!r}\n{code}"
    return run(sys.executable, "-S", "-c", program, cwd=cwd).stdout


MODEL_FILES = {
    f"fastddpm/assets/{name}"
    for name in (
        "mnist/config.json",
        "mnist/scheduler_config.json",
        "mnist/diffusion_pytorch_model.safetensors",
        "mnist_features/model.safetensors",
    )
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))[0]


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(wheel, tmp_path_factory.mktemp("installed") / "target")


def test_wheel_name(wheel: Path) -> None:
    """One wheel for every Python 3: no extension module, a library for ctypes."""
    name, _version, *tags = wheel.stem.split("-")
    assert name == "fastddpm"
    assert tags[:2] == ["py3", "none"]


def test_wheel_contents(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {
        *(str(file.relative_to(ROOT)) for file in (ROOT / "fastddpm").rglob("*.py")),
        *(f"fastddpm/{file.relative_to(ROOT)}" for file in (ROOT / "kernels").rglob("*.py")),
    }
    assert sources <= names
    assert {"fastddpm/py.typed", *MODEL_FILES} <= names
    assert "fastddpm/kernels/ancestral_step/reference.py" in sources
    assert "fastddpm/kernels/__init__.py" not in names
    tops = {name.split("/")[0] for name in names}
    assert tops == {"fastddpm", next(top for top in tops if top.endswith(".dist-info"))}
    unwanted = {name for name in names if name.endswith((".cpp", ".h", ".pyc", ".o", ".txt"))}
    assert {name for name in unwanted if ".dist-info" not in name} == set()
    assert any(name.endswith("licenses/LICENSE") for name in names)
    if cpu_library().handle is not None:
        assert f"fastddpm/{LIBRARY_NAME}" in names


def test_installed_wheel_works_elsewhere(installed: Path, tmp_path: Path) -> None:
    code = """
import fastddpm, importlib.util
from fastddpm import ops
from fastddpm.kernels.ancestral_step import reference
print(fastddpm.__file__)
print(reference.__file__)
print(ops.cpu_library_status())
print(importlib.util.find_spec("kernels"))
"""
    package, reference, status, kernels = python(installed, code, tmp_path).splitlines()
    assert package == str(installed / "fastddpm/__init__.py")
    assert reference == str(installed / "fastddpm/kernels/ancestral_step/reference.py")
    if cpu_library().handle is not None:
        assert status.startswith(f"{LIBRARY_NAME}, ABI ")
    # Another project's name, in no way ours.
    assert kernels == "None"


def test_another_kernels_package_wins_in_a_checkout(tmp_path: Path) -> None:
    """Even where the checkout stands on the path, before the other project's package."""
    other = tmp_path / "kernels"
    other.mkdir()
    (other / "__init__.py").write_text("OTHER = True\n")
    code = f"import sys; sys.path.append({str(tmp_path)!r}); import kernels; print(kernels.OTHER)"
    assert run(sys.executable, "-c", code, cwd=ROOT).stdout == "True\n"


def test_without_a_compiler(tmp_path: Path) -> None:
    wheel, log = build_wheel(tmp_path, CXX="/nonexistent/c++")
    assert "no C++ compiler found; installing without the CPU library" in log
    assert f"fastddpm/{LIBRARY_NAME}" not in zipfile.ZipFile(wheel).namelist()
    target = install(wheel, tmp_path / "target")
    code = """
import torch
from fastddpm import noise, ops
print(ops.cpu_library_status())
call = (0, torch.arange(3), 5, (3, 4, 4), noise.Purpose.REVERSE)
print(torch.equal(ops.normal(*call), noise.normal(*call)))
"""
    status, equal = python(target, code, tmp_path).splitlines()
    assert status.startswith(f"no CPU library: {LIBRARY_NAME} is not installed")
    assert "C++ compiler" in status and "pip install" in status
    assert equal == "True"


def test_the_bare_source_folder_is_refused_at_once(tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "fastddpm", tmp_path / "fastddpm", ignore=ignored)
    paths = [str(tmp_path), *site.getsitepackages()]
    code = f"import sys; sys.path[1:1] = {paths!r}; import fastddpm"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].startswith("ImportError: fastddpm was imported from the")
    assert "pip install -e ." in done.stderr
