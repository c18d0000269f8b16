"""The golden vectors of independent implementations, through tests/golden/adapter.py.

The sets lie beside the repository, in ../shared/golden; without them these tests are skipped.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

ADAPTER = Path(__file__).parent / "golden" / "adapter.py"
GOLDEN = Path(__file__).parents[2] / "shared" / "golden"

# Every case of these is covered.
COVERED = (
    "schedules",
    "gaussian",
    "lucidrains",
    "diffusers_ddpm",
    "diffusers_ddim",
    "unet_diffusers",
    "unet_ho",
    "unet_iddpm",
    "likelihood",
    "chains",
    "ho",
    "train",
)
IN_FLOAT64 = ("gaussian", "lucidrains", pytest.param("likelihood", marks=pytest.mark.slow))

pytestmark = pytest.mark.skipif(not GOLDEN.exists(), reason=f"no golden sets in {GOLDEN}")


@pytest.mark.slow
@pytest.mark.parametrize("group", COVERED)
def test_group(group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _check(group, lambda inputs: inputs, monkeypatch)


@pytest.mark.parametrize("group", IN_FLOAT64)
def test_group_in_float64(group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _check(group, _widened, monkeypatch)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("linear1000_fixed_large", marks=pytest.mark.slow),
        "linear1000_sp50_fixed_small",
        "linear50_fixed_large",
        "linear50_fixed_small_rescale",
    ],
)
def test_bounds_are_openais_to_1e_5_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a network in float32, from OpenAI's loop in float64: closer than its own float32."""
    _, adapter, context = _loaded(monkeypatch)
    case = next(c for c in context.man["cases"] if c["id"] == f"likelihood/bpd/{name}")
    found = adapter.run(case, context.inputs(case), context)
    for column in ("total_bpd", "prior_bpd", "vb", "total_bpd_ho_order", "vb_ho_order"):
        if column not in case["outputs"]:
            continue
        exact, theirs = (context.tensor(case["outputs"][column][k]) for k in ("f64", "f32"))
        difference = np.abs(found[column] - exact).max()
        assert difference < 1e-5, column
        assert difference <= np.abs(theirs - exact).max() + 1e-12, column


def test_the_checker_rejects_a_wrong_result(monkeypatch: pytest.MonkeyPatch) -> None:
    check, adapter, context = _loaded(monkeypatch)
    case = next(c for c in context.man["cases"] if c["id"] == "gaussian/linear1000/q_sample")
    wrong = adapter.run(case, context.inputs(case), context)["x_t"] + np.float32(1e-4)
    assert not check.compare(context, case["outputs"]["x_t"], wrong)[0]


def _check(
    group: str,
    prepare: Callable[[dict[str, Any]], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every checked case of a group runs, returns all its outputs, and each is within tolerance."""
    wrong = _wrong(group, prepare, monkeypatch)
    assert not wrong, "\n".join(f"{place}: {what}" for place, what in wrong.items())


def _wrong(
    group: str,
    prepare: Callable[[dict[str, Any]], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, float | str]:
    """Outputs of a group beyond their tolerances, as multiples of it, or how they are missing."""
    check, adapter, context = _loaded(monkeypatch)
    cases = [c for c in context.man["cases"] if c["group"] == group and c["check"]]
    assert cases, f"the set has no case of {group}"
    wrong: dict[str, float | str] = {}
    for case in cases:
        if "raises" in case["outputs"]:
            with pytest.raises(ValueError):
                adapter.run(case, prepare(context.inputs(case)), context)
            continue
        results = adapter.run(case, prepare(context.inputs(case)), context)
        if results is None:
            wrong[case["id"]] = "not covered"
            continue
        for name, expected in case["outputs"].items():
            if name not in results:
                wrong[f"{case['id']} {name}"] = "not returned"
                continue
            good, ratio, _ = check.compare(context, expected, results[name])
            if not good:
                wrong[f"{case['id']} {name}"] = ratio
    return wrong


def _widened(inputs: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.astype(np.float64)
        if isinstance(value, np.ndarray) and value.dtype == np.float32
        else value
        for name, value in inputs.items()
    }


def _loaded(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType, Any]:
    monkeypatch.syspath_prepend(str(ADAPTER.parent))
    check = _module("golden_check", GOLDEN / "golden_check.py")
    # For libraries with float64 tables, as ours are.
    monkeypatch.setattr(check, "STRICT", True)
    return check, _module("golden_adapter", ADAPTER), check.Ctx(str(GOLDEN / "public"))


def _module(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
