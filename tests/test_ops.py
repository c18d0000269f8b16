"""normal and ancestral_step: every backend against the specification, on every case."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastddpm import noise, ops
from fastddpm.kernels.ancestral_step import cases as ancestral_cases
from fastddpm.kernels.ancestral_step import reference
from fastddpm.kernels.ancestral_step.reference import LEARNED_VARIANCES, STEP_COLUMNS
from fastddpm.kernels.normal import cases as normal_cases
from fastddpm.noise import Purpose
from fastddpm.ops import library

ROOT = Path(__file__).parents[1]
LIBRARY = library.cpu_library()
needs_library = pytest.mark.skipif(LIBRARY.handle is None, reason=LIBRARY.reason)
# Output buffers start as NaN, so that an element nobody writes shows.
pytestmark = pytest.mark.usefixtures("fresh_memory_is_nan")
ISAS = LIBRARY.isas if LIBRARY.handle is not None else ()


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest):
    """Each instruction set that the library holds and this CPU can run."""
    best = LIBRARY.isa
    LIBRARY.use_isa(request.param)
    assert LIBRARY.isa == request.param
    yield request.param
    LIBRARY.use_isa(best)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.view(torch.int32), b.view(torch.int32))


# ---- normal


def indices_of(case: normal_cases.Case) -> Tensor:
    return torch.tensor([case.first_index + k for k in range(case.batch)], dtype=torch.int64)


@pytest.mark.parametrize("case", normal_cases.CASES, ids=lambda case: case.name)
def test_normal_is_the_specification_bit_for_bit(case: normal_cases.Case, isa: str) -> None:
    call = (case.seed, indices_of(case), case.step, case.shape, Purpose.REVERSE)
    assert same_bits(ops.normal(*call, backend="cpu"), noise.normal(*call))


@needs_library
@pytest.mark.parametrize("purpose", Purpose)
def test_normal_for_every_purpose_and_step_tensor(purpose: Purpose) -> None:
    indices, steps = torch.arange(10)[::2], torch.tensor([5, 0, 999, 2**24 - 1, 5])
    for step in (steps, steps[:1], 7):
        call = (2**63 + 1, indices, step, (3, 5), purpose)
        assert same_bits(ops.normal(*call, backend="cpu"), noise.normal(*call))


@needs_library
def test_results_do_not_depend_on_threads() -> None:
    threads = torch.get_num_threads()
    draw = ops.Draw(4, torch.arange(5), torch.tensor([3]))
    x, output, table = torch.randn(5, 3, 260, 259), torch.randn(5, 3, 260, 259), row_table()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            z = ops.normal(4, torch.arange(5), 3, (3, 260, 259), Purpose.REVERSE, backend="cpu")
            step = ops.ancestral_step(
                *(x, output, draw, table, torch.tensor([0])),
                **{"prediction": "epsilon", "variance": "fixed_small", "clip": 1.0},
                backend="cpu",
            )
            results.append((z, *step))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(same_bits(a, b) for a, b in zip(result, results[0], strict=True))


# ---- ancestral_step


def row_table(rows: int = 1) -> Tensor:
    """Rows of plausible size; the last adds no noise."""
    generator = torch.Generator().manual_seed(7)
    table = torch.rand(rows, len(STEP_COLUMNS), generator=generator)
    columns = {name: k for k, name in enumerate(STEP_COLUMNS)}
    table[:, columns["x0_from_output"]] *= -3
    table[:, columns["mean_from_output"]] = 1
    table[:, columns["log_variance_min"]] = -9 - table[:, columns["log_variance_min"]]
    table[:, columns["log_variance_max"]] = -8 + table[:, columns["log_variance_max"]]
    table[:, columns["noise_gate"]] = 1
    table[-1, [columns["sigma"], columns["noise_gate"]]] = 0 if rows > 1 else 1
    return table


def inputs_of(case: ancestral_cases.Case) -> dict[str, object]:
    generator = torch.Generator().manual_seed(3)
    batch, channels, *spatial = case.shape
    factor = 2 if case.variance in LEARNED_VARIANCES else 1
    timesteps = torch.tensor([0, 333, 999])
    drawn = ops.Draw(9, torch.arange(batch) + 2**33, timesteps)
    given = torch.randn(case.shape, generator=generator)
    return {
        "x": torch.randn(case.shape, generator=generator),
        "model_output": torch.randn(batch, factor * channels, *spatial, generator=generator),
        "noise": drawn if case.draws else given,
        "table": row_table(3),
        "prediction": case.prediction,
        "variance": case.variance,
        "clip": case.clip,
    }


def in_float64(case: ancestral_cases.Case, i: int) -> tuple[Tensor, Tensor]:
    """The formula of the reference's docstring, with Python numbers, in float64."""
    given = inputs_of(case)
    x, output = given["x"].double(), given["model_output"].double()
    row = dict(zip(STEP_COLUMNS, given["table"][i].double().tolist(), strict=True))
    z = given["noise"]
    if case.draws:
        z = noise.normal(z.seed, z.indices, int(z.timesteps[i]), case.shape[1:], Purpose.REVERSE)
    sigma = row["sigma"]
    if case.variance in LEARNED_VARIANCES:
        output, log_variance = output[:, : case.shape[1]], output[:, case.shape[1] :]
        if case.variance == "learned_range":
            low, high = row["log_variance_min"], row["log_variance_max"]
            log_variance = low + (log_variance + 1) / 2 * (high - low)
        sigma = row["noise_gate"] * torch.exp(log_variance / 2)
    x_0 = row["x0_from_x"] * x + row["x0_from_output"] * output
    if case.clip is not None:
        x_0 = torch.minimum(torch.maximum(x_0, torch.tensor(-case.clip)), torch.tensor(case.clip))
    mean = row["mean_from_x0"] * x_0 + row["mean_from_x"] * x
    if case.prediction == "previous_sample":
        mean = output
    return mean + sigma * z.double(), x_0


@pytest.mark.parametrize("i", [0, 2])
@pytest.mark.parametrize("case", ancestral_cases.CASES, ids=lambda case: case.name)
def test_reference_is_the_formula(case: ancestral_cases.Case, i: int) -> None:
    results = ops.ancestral_step(**inputs_of(case), i=torch.tensor([i]), backend="reference")
    for ours, exact in zip(results, in_float64(case, i), strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), exact, rtol=0, atol=2e-6)


@pytest.mark.parametrize("i", [0, 2])
@pytest.mark.parametrize("case", ancestral_cases.CASES, ids=lambda case: case.name)
def test_cpu_kernel_is_the_reference(case: ancestral_cases.Case, i: int, isa: str) -> None:
    call = inputs_of(case) | {"i": torch.tensor([i])}
    ours = ops.ancestral_step(**call, backend="cpu")
    expected = ops.ancestral_step(**call, backend="reference")
    assert same_bits(ours[1], expected[1])
    if case.variance not in LEARNED_VARIANCES:
        assert same_bits(ours[0], expected[0])
    else:
        # Two exponentials within 2 and 1 ulp of the truth, a product and a sum each.
        sigma_z = expected[0] - ops.ancestral_step(**(call | {"table": silent(call["table"])}))[0]
        bound = 2.0**-23 * (5 * sigma_z.abs() + expected[0].abs()) + 1e-9
        assert ((ours[0] - expected[0]).abs() <= bound).all()


def silent(table: Tensor) -> Tensor:
    """The table with no noise in any row."""
    gates = [STEP_COLUMNS.index("sigma"), STEP_COLUMNS.index("noise_gate")]
    return table.index_fill(1, torch.tensor(gates), 0.0)


def test_learned_sigma_over_the_whole_range(isa: str) -> None:
    """exp(v / 2) within 2 ulp of float64 down to the subnormals, exact at 0, infinity and NaN."""
    v = torch.cat([torch.linspace(-174, 177, 100_001), torch.tensor([0.0, -1e4, 1e4, -math.inf])])
    v = torch.cat([v, torch.tensor([math.inf, math.nan])]).reshape(1, 1, -1)
    zeros, table = torch.zeros_like(v), torch.zeros(1, len(STEP_COLUMNS))
    table[0, STEP_COLUMNS.index("noise_gate")] = 1
    sigma, _ = ops.ancestral_step(
        *(zeros, torch.cat([zeros, v], 1), torch.ones_like(v), table, torch.tensor([0])),
        **{"prediction": "epsilon", "variance": "learned", "clip": None, "backend": "cpu"},
    )
    exact = (v.double() / 2).exp()
    sigma, exact = sigma.flatten(), exact.flatten()
    assert sigma[-1].isnan() and sigma[-2] == math.inf and sigma[-3] == 0 and sigma[-4] == math.inf
    assert sigma[-5] == 0 and sigma[-6] == 1
    ulp = torch.clamp(exact[:-6] * 2.0**-23, min=2.0**-149)
    assert ((sigma[:-6].double() - exact[:-6]).abs() <= 2 * ulp).all()


def test_nan_and_infinity_pass_as_in_torch(isa: str) -> None:
    case = ancestral_cases.Case("nan", (2, 1, 5, 5))
    call = inputs_of(case) | {"i": torch.tensor([0])}
    for name in ("x", "model_output", "noise"):
        for k, value in enumerate((math.nan, math.inf, -math.inf)):
            call[name].flatten()[7 * k + 3] = value
    for ours, expected in zip(
        ops.ancestral_step(**call, backend="cpu"),
        ops.ancestral_step(**call, backend="reference"),
        strict=True,
    ):
        assert expected.isnan().any()
        torch.testing.assert_close(ours, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_library)])
def test_out_is_filled_and_may_be_x(backend: str) -> None:
    call = inputs_of(ancestral_cases.CASES[0]) | {"i": torch.tensor([1]), "backend": backend}
    expected = ops.ancestral_step(**call)
    call["x"] = call["x"].clone()
    out = (call["x"], torch.full_like(call["x"], math.nan))
    result = ops.ancestral_step(**call, out=out)
    assert result[0] is out[0] and result[1] is out[1]
    assert same_bits(out[0], expected[0]) and same_bits(out[1], expected[1])


@needs_library
def test_any_memory_layout() -> None:
    call = inputs_of(ancestral_cases.CASES[1]) | {"i": torch.tensor([1])}
    expected = ops.ancestral_step(**call, backend="reference")
    for name in ("x", "model_output", "noise"):
        call[name] = call[name].to(memory_format=torch.channels_last)
    call["table"] = call["table"].t().contiguous().t()
    results = ops.ancestral_step(**call, backend="cpu")
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


def test_half_precision_output_takes_the_reference() -> None:
    call = inputs_of(ancestral_cases.CASES[0]) | {"i": torch.tensor([1])}
    half = call | {"model_output": call["model_output"].bfloat16()}
    expected = ops.ancestral_step(**(call | {"model_output": half["model_output"].float()}))
    assert same_bits(ops.ancestral_step(**half)[0], expected[0])
    with pytest.raises(ValueError, match=r"model_output is torch\.bfloat16, not float32"):
        ops.ancestral_step(**half, backend="cpu")


def test_gradients_take_the_reference() -> None:
    call = inputs_of(ancestral_cases.CASES[0]) | {"i": torch.tensor([1])}
    call["model_output"].requires_grad_()
    x_prev, _ = ops.ancestral_step(**call)
    assert x_prev.requires_grad
    with pytest.raises(ValueError, match="model_output needs a gradient"):
        ops.ancestral_step(**call, backend="cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prediction": "eps"}, "prediction: expected one of .* got 'eps'"),
        ({"variance": "fixed"}, "variance: expected one of .* got 'fixed'"),
        ({"clip": 0.0}, "clip: expected a number above 0 or None, got 0.0"),
        ({"clip": math.nan}, "clip: expected a number above 0"),
        ({"x": torch.zeros(8, 1, 28, 28).double()}, "x: expected float32"),
        ({"model_output": torch.zeros(8, 2, 28, 28)}, r"expected torch.float32 \[8, 1, 28, 28\]"),
        ({"noise": torch.zeros(8, 1, 28)}, "noise: expected"),
        ({"table": torch.zeros(3, 9)}, r"table: expected torch.float32 \[3, 10\]"),
        ({"i": torch.tensor(0)}, r"i: expected torch.int64 \[1\], got torch.int64 \[\]"),
        ({"backend": "gpu"}, "backend: expected 'auto', 'reference' or 'cpu', got 'gpu'"),
        ({"out": (torch.zeros(1), torch.zeros(1))}, "out: expected"),
    ],
)
def test_mistakes_are_named(change: dict[str, object], message: str) -> None:
    call = inputs_of(ancestral_cases.CASES[0]) | {"i": torch.tensor([0])} | change
    with pytest.raises(ValueError, match=message):
        ops.ancestral_step(**call)


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_library)])
@pytest.mark.parametrize("draws", [False, True])
@pytest.mark.parametrize("i", [-1, 3, 2**40])
def test_a_row_outside_of_the_table_is_an_index_error(i: int, draws: bool, backend: str) -> None:
    case = ancestral_cases.CASES[0]._replace(draws=draws)
    call = inputs_of(case) | {"i": torch.tensor([i]), "backend": backend}
    with pytest.raises(IndexError, match=rf"i: expected a row of the table, 0 to 2, got {i}$"):
        ops.ancestral_step(**call)


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_library)])
def test_the_default_dtype_changes_nothing(backend: str, other_default_dtype: torch.dtype) -> None:
    draw = (4, torch.arange(3), 3, (2, 5), Purpose.REVERSE)
    z = ops.normal(*draw, backend=backend)
    with default_dtype(torch.float32):
        call = inputs_of(ancestral_cases.CASES[0]) | {"i": torch.tensor([1]), "backend": backend}
        expected = (noise.normal(*draw), *ops.ancestral_step(**call))
    assert torch.get_default_dtype() == other_default_dtype
    results = (z, *ops.ancestral_step(**call))
    assert all(r.dtype == torch.float32 for r in results)
    assert all(same_bits(a, b) for a, b in zip(results, expected, strict=True))


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(before)


# ---- the library


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
    declared = {"fastddpm_abi_version", "fastddpm_error_message", *library._SIGNATURES}
    assert functions == declared | {"fastddpm_isa_name", "fastddpm_isa_list"}
    for name, types in library._SIGNATURES.items():
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
    monkeypatch.setattr(library, "ABI_VERSION", 99)
    library.cpu_library.cache_clear()
    try:
        assert "ABI version 1, this package needs 99" in ops.cpu_library_status()
    finally:
        monkeypatch.undo()
        library.cpu_library.cache_clear()


def test_reference_reads_the_row_it_is_told() -> None:
    """Two rows give two results: the index is read at run time, nothing is baked in."""
    call = inputs_of(ancestral_cases.CASES[0])
    rows = [reference.ancestral_step(**call, i=torch.tensor([i]))[0] for i in range(3)]
    assert not torch.equal(rows[0], rows[1]) and not torch.equal(rows[1], rows[2])


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
