"""The import layers of the tree, and what importing fastddpm leaves alone."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Each layer imports only those before it. A new module must be given its place here.
LAYERS = (
    ("_installation", "atomic", "schedule", "timesteps", "noise", "gaussian", "kernels"),
    ("coefficients", "step_rows"),
    ("diffusion",),
    ("ops",),
    ("unet",),
    ("engine",),
    ("sampler", "checkpoint"),
    ("evaluation", "train", "distributed", "selfcheck"),
    ("codec",),
    ("integrations",),
    ("parity",),
    ("cli",),
    ("__init__", "__main__"),
)
RANK = {part: rank for rank, layer in enumerate(LAYERS) for part in layer}

# The U-Net knows nothing of time tables; an engine takes callables and knows nothing of diffusion.
DIFFUSION_PARTS = {"schedule", "timesteps", "gaussian", "coefficients", "diffusion"}
BLIND = {"unet": DIFFUSION_PARTS | {"noise"}, "engine": DIFFUSION_PARTS | {"noise", "unet"}}

# Imported inside the functions that need them, never at the top of a file.
OPTIONAL = {
    "constriction",
    "diffusers",
    "matplotlib",
    "ray",
    "tensorboard",
    "torch_fidelity",
    "triton",
}

# Classes that derive from an optional package's; imported late themselves.
DERIVED = {
    ROOT / "fastddpm/integrations/counter_pipeline.py",
    ROOT / "fastddpm/integrations/pipelines.py",
    ROOT / "fastddpm/integrations/schedulers.py",
}

# What kernels call, besides kernels/<op>/triton_*.py the only files that import triton at the top.
TRITON_FUNCTIONS = {ROOT / "kernels/common/philox.py", ROOT / "kernels/common/runs.py"}

FILES = sorted(file for folder in ("fastddpm", "kernels") for file in (ROOT / folder).rglob("*.py"))


def part_of(file: Path) -> str:
    """The layer's member that a file belongs to: its module or folder name under fastddpm/."""
    relative = file.relative_to(ROOT)
    return "kernels" if relative.parts[0] == "kernels" else relative.with_suffix("").parts[1]


def module_of(file: Path) -> tuple[str, ...]:
    """The package that relative imports in this file start from."""
    parent = file.relative_to(ROOT).parent.parts
    return ("fastddpm", *parent) if parent[0] == "kernels" else parent


def imports(file: Path, nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Dotted names of all modules that these nodes of the file import."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module_of(file)
            start = base[: len(base) - node.level + 1] if node.level else ()
            name = ".".join((*start, *filter(None, [node.module])))
            # `from fastddpm import ops` means fastddpm.ops.
            yield from (
                f"{name}.{alias.name}" if name == "fastddpm" else name for alias in node.names
            )


def violations(file: Path, source: str) -> list[str]:
    """Imports of `file` that its layer forbids."""
    part = part_of(file)
    found = []
    for name in imports(file, ast.walk(ast.parse(source))):
        top, *rest = name.split(".")
        if part == "kernels" and top not in {*sys.stdlib_module_names, "torch", "triton"}:
            if not name.startswith("fastddpm.kernels"):
                found.append(f"{name}: kernels import torch and triton only")
        elif top == "fastddpm":
            target = rest[0] if rest else "__init__"
            if target == part:
                continue
            # `from fastddpm import __version__`, or any other public name, needs __init__.
            rank = RANK.get(target, RANK["__init__"])
            if rank >= RANK[part] and part not in LAYERS[-1]:
                found.append(f"{name}: {part} lies at or before {target}")
            if target in BLIND.get(part, ()):
                found.append(f"{name}: {part} knows nothing of {target}")
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_layers(file: Path) -> None:
    assert part_of(file) in RANK, "give the new module its place in LAYERS"
    assert violations(file, file.read_text()) == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_optional_packages_are_imported_late(file: Path) -> None:
    if file.name.startswith("triton_") or file in TRITON_FUNCTIONS | DERIVED:
        return
    tree = ast.parse(file.read_text())
    tops = {name.split(".")[0] for name in imports(file, iter(tree.body))}
    assert tops & OPTIONAL == set()


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("fastddpm/noise.py", "from fastddpm import ops"),
        ("fastddpm/noise.py", "def f():\n    import fastddpm.unet.blocks"),
        ("fastddpm/schedule.py", "from . import timesteps"),
        ("fastddpm/ops/normal.py", "from ..unet import UNet"),
        ("fastddpm/unet/unet.py", "from fastddpm.diffusion import GaussianDiffusion"),
        ("fastddpm/engine/eager.py", "from fastddpm.schedule import NoiseSchedule"),
        ("fastddpm/sampler/sampler.py", "from fastddpm import UNet"),
        ("kernels/normal/cases.py", "import numpy"),
        ("kernels/normal/cases.py", "from fastddpm.noise import normal"),
    ],
)
def test_the_check_sees_violations(file: str, source: str) -> None:
    assert violations(ROOT / file, source)


def test_kernels_is_no_package_of_its_own() -> None:
    """The import name `kernels` belongs to another project."""
    assert not (ROOT / "kernels/__init__.py").exists()


WATCHED = """
import json, os, random, sys, warnings
import numpy, torch

def state():
    return {
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "dtype": str(torch.get_default_dtype()),
        "device": str(torch.get_default_device()),
        "grad": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn": [str(getattr(torch.backends.cudnn, name)) for name in
                  ("enabled", "benchmark", "deterministic", "allow_tf32")],
        "cuda_matmul_tf32": str(torch.backends.cuda.matmul.allow_tf32),
        "mkldnn": torch.backends.mkldnn.enabled,
        "cuda_initialized": torch.cuda.is_initialized(),
        "rng": torch.get_rng_state().sum().item(),
        "numpy_rng": int(numpy.random.get_state()[1].sum()),
        "python_rng": hash(random.getstate()),
        "environment": dict(os.environ),
        "warnings": [str(entry) for entry in warnings.filters],
        "numpy_errors": numpy.geterr(),
        "excepthook": repr(sys.excepthook),
    }

before, modules = state(), set(sys.modules)
import fastddpm
after = state()
print(json.dumps({
    "changed": [name for name in before if before[name] != after[name]],
    "new": sorted({name.split(".")[0] for name in set(sys.modules) - modules}),
}))
"""


def test_importing_changes_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WATCHED], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    seen = json.loads(done.stdout)
    assert seen["changed"] == []
    assert "fastddpm" in seen["new"]
    assert set(seen["new"]) & (OPTIONAL | {"typer", "rich"}) == set()


def test_importing_works_without_the_library(tmp_path: Path) -> None:
    code = """
import torch, fastddpm
from fastddpm.ops import library
library.LIBRARY_NAME = "libabsent.so"
from fastddpm import ops
assert "no CPU library" in ops.cpu_library_status()
print(ops.normal(0, torch.arange(2), 0, (2,), 0).shape)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "torch.Size([2, 2])\n"
