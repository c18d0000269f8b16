"""fastddpm doctor --selfcheck: what it prints, when it fails, and that its checks can fail."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner, Result

from fastddpm import Sampler, ops, selfcheck
from fastddpm.cli import app
from fastddpm.kernels.ancestral_step.call import StepCall
from fastddpm.ops import library, program_abi
from fastddpm.selfcheck import Check, Outcome, checks, engines, exact, norms
from fastddpm.selfcheck.outcome import Bits, Errors, largest_difference, not_run, run

CPU = torch.device("cpu")
needs_library = pytest.mark.skipif(
    library.cpu_library().handle is None, reason=library.cpu_library().reason
)


def doctor(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["doctor", *arguments])


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes the command find these outcomes."""

    def use(*outcomes: Outcome) -> None:
        made = [Check(outcome.name, lambda outcome=outcome: outcome) for outcome in outcomes]
        monkeypatch.setattr(selfcheck, "all_checks", lambda device, *, quick=False: made)

    return use


GOOD = Outcome("normal, cpu", True, "exact", 0.0, 0.0, "ab" * 32)
SKIPPED = Outcome("engine cuda_graph", None, "it needs a CUDA device")
BAD = Outcome("q_sample, cpu", False, "2 of 9 results differ", 0.25, 0.0, "cd" * 32)


# ---- the command


def test_prints_a_line_each(found: Callable[..., None]) -> None:
    found(GOOD, SKIPPED)
    result = doctor("--selfcheck")
    lines = result.output.splitlines()
    assert result.exit_code == 0, result.output
    assert lines[-2:] == [
        "normal, cpu        ok: exact; largest difference 0, bound 0; sha256 abababababababab",
        "engine cuda_graph  not run: it needs a CUDA device",
    ]


def test_fails_if_a_check_does(found: Callable[..., None], tmp_path: Path) -> None:
    found(GOOD, BAD, SKIPPED)
    result = doctor("--selfcheck", "--json", str(tmp_path / "found.json"))
    assert result.exit_code == 1
    assert "FAILED: 2 of 9 results differ; largest difference 0.25, bound 0" in result.output
    written = json.loads((tmp_path / "found.json").read_text())
    assert [outcome["passed"] for outcome in written["outcomes"]] == [True, False, None]
    assert written["outcomes"][1]["sha256"] == "cd" * 32


def test_json_needs_the_selfcheck(tmp_path: Path) -> None:
    result = doctor("--json", str(tmp_path / "found.json"))
    assert result.exit_code == 2 and "--selfcheck" in result.output


def test_nothing_is_compared_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selfcheck, "all_checks", lambda device: pytest.fail("compared"))
    assert doctor().exit_code == 0


# ---- outcomes


def test_bits_tell_signs_of_zero_and_nans() -> None:
    bits = Bits()
    bits.add("same", torch.tensor([1.0, torch.nan]), torch.tensor([1.0, torch.nan]))
    assert bits.outcome("x").passed
    bits.add("zero", torch.tensor([0.0]), torch.tensor([-0.0]))
    outcome = bits.outcome("x")
    assert not outcome.passed and outcome.says == "1 of 2 results differ: zero"
    assert outcome.difference == 0


def test_hash_is_of_the_results_and_not_of_their_layout() -> None:
    x = torch.arange(24.0).reshape(1, 2, 3, 4)
    hashes = []
    for form in (torch.contiguous_format, torch.channels_last):
        bits = Bits()
        bits.add("x", x.contiguous(memory_format=form), x)
        hashes.append(bits.outcome("x").sha256)
    assert hashes[0] == hashes[1]
    assert hashes[0] == hashlib.sha256(np.arange(24, dtype="<f4").tobytes()).hexdigest()


def test_errors_tell_the_one_nearest_to_its_bound() -> None:
    errors = Errors()
    errors.add("small", 1e-6, 1e-5)
    errors.add("large", 5.0, 6.0)
    assert errors.outcome("x").says.endswith("large") and errors.outcome("x").passed
    errors.add("nan", torch.nan, 6.0)
    outcome = errors.outcome("x")
    assert outcome.passed is False and outcome.says.endswith("nan")
    assert json.loads(json.dumps(outcome.as_dict(), allow_nan=False))["difference"] == "nan"
    assert Errors().outcome("x").passed is None


def test_largest_difference() -> None:
    a = torch.tensor([1.0, torch.inf, torch.nan])
    assert largest_difference(a, a.clone()) == 0
    assert largest_difference(a, torch.tensor([3.0, torch.inf, torch.nan])) == 2
    for other in ([1.0, torch.inf, 0.0], [1.0, torch.nan, torch.nan]):
        assert not largest_difference(a, torch.tensor(other)) <= 1e9
    assert not largest_difference(a, a[:2]) <= 1e9
    assert largest_difference(torch.empty(0), torch.empty(0)) == 0


@pytest.mark.parametrize("error", [RuntimeError("no\nmemory"), ValueError("x"), AssertionError()])
def test_an_error_is_a_failure(error: Exception) -> None:
    def compare() -> Outcome:
        raise error

    outcome = run(Check("kernel", compare))
    assert outcome.passed is False and outcome.says.startswith(type(error).__name__)
    assert "\n" not in outcome.says


def test_a_compilers_error_is_a_failure() -> None:
    errors = pytest.importorskip("triton.errors")

    def compare() -> Outcome:
        raise errors.TritonError("no such instruction")

    assert run(Check("kernel", compare)).passed is False


def test_not_run() -> None:
    outcome = run(not_run("kernel", "why"))
    assert (outcome.passed, outcome.says) == (None, "why")


# ---- the checks themselves


@needs_library
@pytest.mark.parametrize("check", checks.EXACT)
def test_cpu_kernels_pass(check: str) -> None:
    outcome = checks.EXACT[check]("cpu", CPU)
    assert outcome.passed, outcome.says


def test_reference_hashes_are_those_of_every_machine() -> None:
    """Nothing but integers and float32 operations that round as specified goes into them. New cases
    change them; nothing else may."""
    assert {name: sha[:16] for name, sha in selfcheck.reference_hashes().items()} == {
        "normal": "959ca7960475fe3e",
        "ancestral_step": "05be6fb8c3cb9359",
        "q_sample": "53a8155a3b7b626e",
    }


def off_by_a_bit(tensor: Tensor) -> Tensor:
    """The same with its last element moved by its last bit."""
    tensor = tensor.clone()
    if tensor.numel():
        tensor.view(-1).view(torch.int32)[-1] += 1
    return tensor


def test_a_wrong_bit_of_noise_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    own, expected = ops.normal, selfcheck.reference_hashes()["normal"]
    monkeypatch.setattr(ops, "normal", lambda *a, **k: off_by_a_bit(own(*a, **k)))
    outcome = exact.normal("reference", CPU)
    assert outcome.passed is False and 0 < (outcome.difference or 0) < 1e-6
    assert outcome.sha256 != expected


def test_a_wrong_bit_of_a_step_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    own, calls = exact.step_in_place, iter(range(10**6))

    def step(call: StepCall, backend: str) -> None:
        own(call, backend)
        # Every other call is the one under test; the rest are its references.
        if next(calls) % 2 == 0:
            call.x.copy_(off_by_a_bit(call.x))

    monkeypatch.setattr(exact, "step_in_place", step)
    outcome = exact.ancestral_step("reference", CPU)
    assert outcome.passed is False and "cifar_draws row 1 x" in outcome.says


def test_a_wrong_bit_of_a_learned_variance_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    own, calls = exact.step_in_place, iter(range(10**6))

    def step(call: StepCall, backend: str) -> None:
        own(call, backend)
        if next(calls) % 2 == 0 and call.learns_variance:
            call.x.copy_(off_by_a_bit(call.x))

    monkeypatch.setattr(exact, "step_in_place", step)
    outcome = exact.ancestral_step("reference", CPU)
    assert outcome.passed is False and "learned_range row 1 x" in outcome.says
    assert "cifar" not in outcome.says


def test_an_output_that_nobody_writes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    own, calls = exact.step_in_place, iter(range(10**6))

    def step(call: StepCall, backend: str) -> None:
        own(call._replace(x_0=None) if next(calls) % 2 == 0 else call, backend)

    monkeypatch.setattr(exact, "step_in_place", step)
    assert exact.ancestral_step("reference", CPU).passed is False


@pytest.mark.parametrize("name", norms.KERNELS)
def test_norms_are_held_to_twice_torchs_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compare = functools.partial(norms.KERNELS[name], "reference", CPU)
    monkeypatch.setattr(norms.norm_cases, "CASES", norms.norm_cases.CASES[4:12])
    assert compare().passed
    own = norms._moved
    monkeypatch.setattr(norms, "_moved", lambda t, device: own(t * (1 + 2e-3), device))
    assert compare().passed is False


def test_engine_check_passes_and_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    compare = functools.partial(engines.chain, "auto", CPU, "small", 20, (3, 2))
    outcome = compare()
    assert outcome.passed and outcome.says.startswith("2 results of 20 steps of the small model")
    expected = engines.reference_images(CPU, "small", 20)
    assert float(expected.std()) > 0.1, "the small model draws something"
    own = engines.sampled
    monkeypatch.setattr(engines, "sampled", lambda *a, **k: own(*a, **k) + 2 * engines.BOUND)
    assert compare().passed is False


def test_splitting_passes_and_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    assert engines.splitting("auto", CPU).passed
    # A model that looks at the whole batch.
    monkeypatch.setattr(engines, "_elementwise", lambda x, t: 0.5 * x + x.mean())
    assert engines.splitting("auto", CPU).passed is False


# What runs inside of a program only: these are in the chains of engine cpu.
INSTRUCTIONS = {"attention", "conv3x3", "convolution", "group_norm_silu", "layout", "pointwise"}


def test_chains_of_the_program_have_all_its_instructions() -> None:
    kinds = set()
    for model in ("mnist", "small"):
        sampler = Sampler(*engines._model(model, 2), "cpu")
        sampler.sample(1)
        kinds |= {word.strip("(,;)") for word in sampler.explain().split()}
    # A call is of torch's functions, none of ours.
    assert {op.name.capitalize() for op in program_abi.Op} - {"Call"} <= kinds


def test_splitting_of_networks_passes_and_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    assert engines.splitting_networks(CPU).passed
    own = engines.sampled

    def sampled(*arguments: Any, batch_size: int | None = None) -> Tensor:
        images = own(*arguments, batch_size=batch_size)
        return images if batch_size is None else torch.nextafter(images, torch.ones(()))

    monkeypatch.setattr(engines, "sampled", sampled)
    assert engines.splitting_networks(CPU).passed is False


def test_every_kernel_and_engine_has_a_check() -> None:
    names = [check.name for check in selfcheck.all_checks(CPU)]
    kernels = {path.parent.name for path in _kernel_files("triton_kernel.py")}
    assert {name.split(",")[0].split(" ")[0] for name in names if "triton" in name} == kernels
    native = {path.parent.name for path in _kernel_files("cpu_kernel.cpp")}
    single = {name.split(",")[0] for name in names if name.endswith(", cpu")}
    assert native - single == INSTRUCTIONS
    for engine in ("auto", "compile", "cuda_graph", "cpu"):
        assert f"engine {engine}" in names


def _kernel_files(name: str) -> list[Path]:
    return list((Path(__file__).parents[1] / "kernels").glob(f"*/{name}"))


def test_without_a_gpu_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "interpreting", lambda: False)
    skipped = {
        outcome.name: outcome.says
        for check in selfcheck.all_checks(CPU)
        if "cuda_graph" in check.name or "triton" in check.name
        for outcome in [run(check)]
        if outcome.passed is None
    }
    assert skipped["engine cuda_graph"].startswith("it needs a CUDA device")
    assert skipped["group_norm_silu backward, triton"] == "it needs a CUDA device"
