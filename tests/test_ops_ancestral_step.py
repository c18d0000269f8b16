"""ancestral_step: every backend against the specification, on every case."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from op_backends import (
    CPU,
    ISAS,
    REFERENCE,
    TRITON,
    default_dtype,
    instruction_set,
    needs_library,
    same_bits,
)
from torch import Tensor

from fastddpm import noise, ops
from fastddpm.kernels.ancestral_step import reference
from fastddpm.kernels.ancestral_step.call import StepCall
from fastddpm.kernels.ancestral_step.cases import CASES, NETWORK_CASES, Case, step_rows
from fastddpm.kernels.ancestral_step.reference import LEARNED_VARIANCES, STEP_COLUMNS
from fastddpm.noise import Purpose
from fastddpm.ops.ancestral_step import step_in_place

# Output buffers start as NaN, so that an element nobody writes shows.
pytestmark = [
    pytest.mark.usefixtures("fresh_memory_is_nan", "casts_round_to_nearest", "products_are_fused"),
    # numpy's, in the interpreter, where a test works with infinities.
    pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning"),
]


BACKENDS = [REFERENCE, CPU, TRITON]
CPU_SETS = [pytest.param(isa, marks=needs_library) for isa in ISAS]
every_case = pytest.mark.parametrize("case", CASES + NETWORK_CASES, ids=lambda case: case.name)


def take(call: StepCall, backend: str) -> StepCall:
    """Run the in-place op on the call's own tensors."""
    step_in_place(call, backend)
    return call


def take_on(call: StepCall, backend: str) -> StepCall:
    """The same by name, or by the instruction set of the CPU library."""
    if backend not in ISAS:
        return take(call, backend)
    with instruction_set(backend):
        return take(call, "cpu")


def arguments(call: StepCall) -> dict[str, Any]:
    """The arguments of the functional op."""
    drawn = None if call.seed is None else ops.Draw(call.seed, call.indices, call.timesteps)
    return {
        "x": call.x,
        "model_output": call.model_output,
        "noise": call.noise if drawn is None else drawn,
        "table": call.table,
        "i": call.i,
        "prediction": call.prediction,
        "variance": call.variance,
        "clip": call.clip,
    }


def in_float64(call: StepCall) -> tuple[Tensor, Tensor]:
    """The formula of the reference's docstring, with Python numbers, in float64."""
    x, output, i = call.x.double(), call.model_output.double(), int(call.i)
    row = dict(zip(STEP_COLUMNS, call.table[i].double().tolist(), strict=True))
    z = call.noise
    if z is None:
        seed = int(call.seed) % 2**64
        step = int(call.timesteps[i])
        z = noise.normal(seed, call.indices, step, call.x.shape[1:], Purpose.REVERSE)
    sigma = row["sigma"]
    if call.variance in LEARNED_VARIANCES:
        output, log_variance = output[:, : x.shape[1]], output[:, x.shape[1] :]
        if call.variance == "learned_range":
            low, high = row["log_variance_min"], row["log_variance_max"]
            log_variance = low + (log_variance + 1) / 2 * (high - low)
        sigma = row["noise_gate"] * torch.exp(log_variance / 2)
    share = row["x0_from_output"] * output
    if call.prediction == "epsilon_in_x":
        share = row["x0_from_x"] * share
    x_0 = row["x0_from_x"] * x + share
    if call.clip is not None:
        x_0 = torch.minimum(torch.maximum(x_0, torch.tensor(-call.clip)), torch.tensor(call.clip))
    mean = row["mean_from_x0"] * x_0 + row["mean_from_x"] * x
    if call.prediction == "previous_sample":
        mean = output
    return mean + sigma * z.double(), x_0


@pytest.mark.parametrize("i", [0, 2])
@every_case
def test_reference_is_the_formula(case: Case, i: int) -> None:
    exact_x, exact_x_0 = in_float64(case.call(i))
    call = take(case.call(i), "reference")
    torch.testing.assert_close(call.x.double(), exact_x, rtol=0, atol=2e-6)
    if call.x_0 is not None:
        torch.testing.assert_close(call.x_0.double(), exact_x_0, rtol=0, atol=2e-6)
    assert call.first_nonfinite.item() == -1
    if call.network_input is not None:
        channels = call.x.shape[1]
        # torch's own cast rounds to nearest even.
        expected = call.x.to(call.network_input.dtype)
        assert same_bits(call.network_input[:, :channels].contiguous(), expected)
        assert (call.network_input[:, channels:] == 0).all()


def assert_is_the_reference(case: Case, i: int, backend: str) -> None:
    ours, expected = take(case.call(i), backend), take(case.call(i), "reference")
    assert torch.equal(ours.first_nonfinite, expected.first_nonfinite)
    if expected.x_0 is not None:
        assert same_bits(ours.x_0, expected.x_0)
    assert same_bits(ours.x, expected.x)
    if ours.network_input is not None:
        reference.write_network_input(expected.network_input, ours.x)
        assert same_bits(ours.network_input, expected.network_input)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("i", [0, 2])
@pytest.mark.parametrize(
    "case",
    [case for case in CASES + NETWORK_CASES if case.output == torch.float32],
    ids=lambda case: case.name,
)
def test_cpu_kernel_is_the_reference(case: Case, i: int, isa: str) -> None:
    with instruction_set(isa):
        assert_is_the_reference(case, i, "cpu")


@pytest.mark.parametrize("i", [0, 2])
@pytest.mark.parametrize("backend", [TRITON])
@every_case
def test_triton_kernel_is_the_reference(case: Case, i: int, backend: str) -> None:
    if case.name == "many_blocks":
        case = case._replace(shape=(2, 3, 25, 31))
    assert_is_the_reference(case, i, backend)


def every_backend_and_isa(check: Callable[[str], None]) -> None:
    """Call check with "triton", and with "cpu" for each instruction set."""
    check("triton")
    for isa in ISAS:
        with instruction_set(isa):
            check("cpu")


def without_noise(table: Tensor) -> Tensor:
    gates = [STEP_COLUMNS.index("sigma"), STEP_COLUMNS.index("noise_gate")]
    return table.index_fill(1, torch.tensor(gates), 0.0)


def log_variances(lowest: float, highest: float, count: int) -> StepCall:
    """A step on zeros with noise 1, so that x_{t-1} is sigma: of ``count`` log-variances, then of
    0, -1e4, 1e4, -infinity, infinity and NaN."""
    v = torch.linspace(lowest, highest, count)
    special = torch.tensor([0.0, -1e4, 1e4, -math.inf, math.inf, math.nan])
    v = torch.cat([v, special, torch.zeros(-(count + 6) % 4)]).reshape(1, 1, -1)
    zeros, table = torch.zeros_like(v), torch.zeros(1, len(STEP_COLUMNS))
    table[0, STEP_COLUMNS.index("noise_gate")] = 1
    case = Case("log_variances", tuple(v.shape), variance="learned", clip=None, wants_x_0=False)
    return case.call(0)._replace(
        x=zeros, model_output=torch.cat([zeros, v], 1), noise=torch.ones_like(v), table=table
    )


def assert_is_sigma(call: StepCall, v: Tensor, ulps: float) -> None:
    """call.x is exp(v / 2) within ulps, but for LEAST_SIGMA."""
    exact, special = (v.double() / 2).exp(), call.x.flatten()[len(v) : len(v) + 6]
    ulp = torch.exp2(exact.log2().floor() - 23)
    error = (call.x.flatten()[: len(v)].double() - exact).abs()
    assert (error <= (ulps * ulp).clamp(min=1.001 * reference.LEAST_SIGMA)).all()
    torch.testing.assert_close(
        special,
        torch.tensor([1.0, 0.0, math.inf, 0.0, math.inf, math.nan]),
        rtol=0,
        atol=0,
        equal_nan=True,
    )


# How far sigma of a log-variance up to this size may be off.
SIGMA_ULPS = {(-24, 6): 1.25, (-60, 60): 2.0, (-174, 177): 5.0}


@pytest.mark.parametrize("limits", SIGMA_ULPS)
def test_learned_sigma_is_near_to_float64(limits: tuple[float, float]) -> None:
    call = take(log_variances(*limits, 99_994), "reference")
    assert_is_sigma(call, torch.linspace(*limits, 99_994), SIGMA_ULPS[limits])


@pytest.mark.parametrize("backend", [*CPU_SETS, TRITON])
@pytest.mark.parametrize("limits", SIGMA_ULPS)
def test_learned_sigma_is_the_reference(limits: tuple[float, float], backend: str) -> None:
    call = log_variances(*limits, 99_994)
    ours = take_on(call._replace(x=call.x.clone()), backend).x.flatten()
    expected = take(call, "reference").x.flatten()
    numbers = ~expected.isnan()  # a NaN's bits are anybody's
    assert same_bits(ours[numbers], expected[numbers]) and ours[~numbers].isnan().all()


def test_gradients_of_a_learned_variance() -> None:
    """The exponential's, against torch's own in float64."""
    v = torch.linspace(-20, 5, 1001, requires_grad=True)
    row = {name: torch.ones(1) for name in STEP_COLUMNS}
    (own,) = torch.autograd.grad(reference.learned_sigma(row, v, "learned").sum(), v)
    torch.testing.assert_close(own.double(), (v.double() / 2).exp() / 2, rtol=2e-5, atol=0)


LEARNED = [case for case in CASES if case.variance in LEARNED_VARIANCES]
every_learned_case = pytest.mark.parametrize("case", LEARNED, ids=lambda case: case.name)


def closed(case: Case) -> StepCall:
    """A call that adds no noise, with a log-variance that is not small."""
    call = case.call(0)
    call.table[:, STEP_COLUMNS.index("noise_gate")] = 0
    call.model_output[0, call.x.shape[1] :] = 1e4
    return call


@every_learned_case
def test_a_closed_gate_leaves_the_mean(case: Case) -> None:
    call, fixed = closed(case), closed(case)
    output = fixed.model_output[:, : fixed.x.shape[1]]
    fixed = fixed._replace(
        model_output=output, variance="fixed_small", table=without_noise(fixed.table)
    )
    assert torch.equal(take(call, "reference").x, take(fixed, "reference").x)


@pytest.mark.parametrize("backend", [*CPU_SETS, TRITON])
@every_learned_case
def test_a_closed_gate_is_the_reference(case: Case, backend: str) -> None:
    assert same_bits(take_on(closed(case), backend).x, take(closed(case), "reference").x)


@pytest.mark.parametrize("backend", [*CPU_SETS, TRITON])
@pytest.mark.parametrize("gate", [0, 1])
@pytest.mark.parametrize("prediction", ["sample", "previous_sample"])
def test_signs_of_zero(prediction: str, gate: int, backend: str) -> None:
    """A mean of -0 and no noise to speak of: what is fused keeps the sign that a sum has."""
    case = Case("zeros", (1, 1, 4, 4), prediction, "learned", wants_x_0=False)

    def call() -> StepCall:
        given = case.call(0)
        given.table.abs_()
        given.table[:, STEP_COLUMNS.index("noise_gate")] = gate
        given.x.fill_(-0.0)
        given.model_output[:, :1] = -0.0
        given.model_output[:, 1:] = -1e4
        given.noise.view(-1)[::2] *= -1
        return given

    expected = take(call(), "reference").x
    assert (expected == 0).all() and torch.signbit(expected).any()
    assert same_bits(take_on(call(), backend).x, expected)


def test_learned_range_is_nearer_to_the_formula_than_the_formula_in_float32() -> None:
    """Errors of sigma, relative to that of float64, for fractions in and about [0, 1]."""
    values, gate = torch.linspace(-1.5, 1.5, 10_000), torch.ones(1)
    low, high = torch.tensor([-17.3]), torch.tensor([-9.1])
    row = {"log_variance_min": low, "log_variance_max": high, "noise_gate": gate}

    def formula(dtype: torch.dtype) -> Tensor:
        fraction = (values.to(dtype) + 1) * 0.5
        return ((fraction * high.to(dtype) + (1 - fraction) * low.to(dtype)) * 0.5).exp()

    exact = formula(torch.float64)
    ours = (reference.learned_sigma(row, values, "learned_range") / exact - 1).abs()
    theirs = (formula(torch.float32) / exact - 1).abs()
    assert ours.max() <= theirs.max() and ours.mean() <= theirs.mean()


@pytest.mark.parametrize("backend", [TRITON])
@pytest.mark.parametrize("layout", [False, True])
def test_nan_and_infinity_pass_as_in_torch(layout: bool, backend: str) -> None:
    case = Case("nan", (2, 2, 5, 6), channels_last=layout)

    def call() -> StepCall:
        given = case.call(0)
        for name in ("x", "model_output", "noise"):
            for k, value in enumerate((math.nan, math.inf, -math.inf)):
                given.tensors[name][k % 2, 0, k, 3 - k] = value
        return given

    expected = take(call(), "reference")
    assert expected.x.isnan().any() and expected.x_0.isnan().any()

    def check(name: str) -> None:
        ours = take(call(), name)
        for a, b in ((ours.x, expected.x), (ours.x_0, expected.x_0)):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
        assert ours.first_nonfinite.item() == 0

    every_backend_and_isa(check)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("where", ["x", "model_output", "last half", "after overflow"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_first_step_that_is_not_finite_is_kept(where: str, value: float, backend: str) -> None:
    case = Case("watched", (2, 3, 4, 4), variance="learned_range")
    call = case.call(1)
    if where == "last half":
        call.model_output[1, 5, 3, 3] = value
    elif where == "after overflow":
        # x and output are finite and only x_{t-1} overflows.
        call.x[0, 1, 2, 3] = math.copysign(3e38, value)
        call.table[1, STEP_COLUMNS.index("mean_from_x")] = 4
    else:
        call.tensors[where][0, 1, 2, 3] = value
    take(call, backend)
    assert call.first_nonfinite.item() == 1
    # A later step, which has a smaller index, leaves it alone.
    later = case.call(0)._replace(x=call.x, first_nonfinite=call.first_nonfinite)
    take(later, backend)
    assert call.first_nonfinite.item() == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_infinite_output_behind_the_clip_is_seen(backend: str) -> None:
    """Clipping turns the output's infinity into a plausible 1."""
    call = Case("clipped", (1, 1, 4, 4)).call(1)
    call.model_output[0, 0, 1, 1] = math.inf
    take(call, backend)
    assert call.x.isfinite().all() and call.first_nonfinite.item() == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_not_asked_for_changes_nothing(backend: str) -> None:
    case = NETWORK_CASES[0]._replace(shape=(2, 3, 8, 8), output=torch.float32)
    whole = take(case.call(1), backend)
    bare = case.call(1)._replace(x_0=None, network_input=None, first_nonfinite=None)
    assert same_bits(take(bare, backend).x, whole.x)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["mnist", "cifar_draws", "learned_range"])
def test_functional_is_in_place_on_a_copy(name: str, backend: str) -> None:
    case = next(case for case in CASES if case.name == name)
    case = case._replace(shape=(2, *case.shape[1:2], 8, 8), wants_x_0=True)
    call = case.call(1)
    before = call.x.clone()
    x_prev, x_0 = ops.ancestral_step(**arguments(call), backend=backend)
    assert torch.equal(call.x, before)
    expected = take(case.call(1), backend)
    assert same_bits(x_prev, expected.x) and same_bits(x_0, expected.x_0)


@pytest.mark.parametrize("backend", [REFERENCE, CPU])
def test_any_memory_layout(backend: str) -> None:
    call = arguments(CASES[1].call(1))
    expected = ops.ancestral_step(**call, backend="reference")
    for name in ("x", "model_output", "noise"):
        call[name] = call[name].to(memory_format=torch.channels_last)
    call["table"] = call["table"].t().contiguous().t()
    results = ops.ancestral_step(**call, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_everything_is_read_when_the_step_runs(backend: str) -> None:
    """Row, seed, indices, timesteps and table lie in tensors: a captured step sees their change."""
    case = CASES[2]._replace(shape=(2, 1, 8, 8))
    call = case.call(0)
    tensors = {name: call.tensors[name] for name in ("i", "seed", "indices", "timesteps", "table")}
    results = [take(case.call(0)._replace(**tensors), backend).x]
    for name in tensors:
        tensors[name] += 1
        results.append(take(case.call(0)._replace(**tensors), backend).x)
    for first in range(len(results)):
        for second in range(first):
            assert not torch.equal(results[first], results[second])


def test_half_precision_output_takes_the_reference_on_a_cpu() -> None:
    call = arguments(CASES[0].call(1))
    half = call | {"model_output": call["model_output"].bfloat16()}
    expected = ops.ancestral_step(**(call | {"model_output": half["model_output"].float()}))
    assert same_bits(ops.ancestral_step(**half)[0], expected[0])
    with pytest.raises(ValueError, match=r"model_output is torch\.bfloat16, not float32"):
        ops.ancestral_step(**half, backend="cpu")


def test_gradients_take_the_reference() -> None:
    call = arguments(CASES[0].call(1))
    call["model_output"].requires_grad_()
    x_prev, _ = ops.ancestral_step(**call)
    assert x_prev.requires_grad
    with torch.no_grad():
        assert not ops.ancestral_step(**call)[0].requires_grad
    for backend in ("cpu", "triton"):
        with pytest.raises(ValueError, match="model_output needs a gradient"):
            ops.ancestral_step(**call, backend=backend)
    with pytest.raises(ValueError, match="in place, but model_output needs a gradient"):
        ops.ancestral_step_(**call)


SQUARE = torch.zeros(8, 1, 28, 28)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prediction": "eps"}, "prediction: expected one of .* got 'eps'"),
        ({"variance": "fixed"}, "variance: expected one of .* got 'fixed'"),
        ({"clip": 0.0}, "clip: expected a number above 0 or None, got 0.0"),
        ({"clip": math.nan}, "clip: expected a number above 0"),
        ({"x": SQUARE.double()}, "x: expected float32"),
        ({"x": SQUARE.mT}, "x: expected a contiguous tensor"),
        ({"model_output": torch.zeros(8, 2, 28, 28)}, r"expected torch.float32 \[8, 1, 28, 28\]"),
        ({"model_output": SQUARE.long()}, "model_output: expected a floating dtype"),
        ({"noise": torch.zeros(8, 1, 28)}, "noise: expected"),
        ({"table": torch.zeros(3, 9)}, r"table: expected torch.float32 \[3, 10\]"),
        ({"i": torch.tensor(0)}, r"i: expected torch.int64 \[1\], got torch.int64 \[\]"),
        ({"x_0": torch.zeros(8, 1, 28)}, "x_0: expected"),
        ({"x_0": SQUARE.mT}, "x_0: expected a contiguous tensor"),
        ({"x_0": SQUARE.to("meta")}, "x_0: expected cpu like x, got meta"),
        (
            {"network_input": SQUARE.double()},
            "network_input: expected float32, bfloat16 or float16",
        ),
        ({"network_input": SQUARE[:7]}, "network_input: expected float32"),
        ({"network_input": SQUARE.mT}, "network_input: expected a contiguous or a channels-last"),
        ({"first_nonfinite": torch.tensor([0.0])}, "first_nonfinite: expected torch.int64"),
        ({"backend": "gpu"}, "backend: expected 'auto', 'reference', 'cpu' or 'triton', got 'gpu'"),
    ],
)
def test_mistakes_are_named(change: dict[str, object], message: str) -> None:
    call = arguments(CASES[0].call(0)) | change
    with pytest.raises(ValueError, match=message):
        ops.ancestral_step_(**call)
    if (
        not change.keys() & {"x_0", "network_input", "first_nonfinite"}
        and "contiguous" not in message
    ):
        with pytest.raises(ValueError, match=message):
            ops.ancestral_step(**call)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": torch.tensor([1, 2])}, r"noise.seed: expected torch.int64 \[1\]"),
        ({"indices": torch.arange(3)}, r"noise.indices: expected torch.int64 \[4\]"),
        ({"timesteps": torch.arange(2)}, r"noise.timesteps: expected torch.int64 \[3\]"),
    ],
)
def test_mistakes_in_a_draw_are_named(change: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        take(CASES[2].call(0)._replace(**change), "auto")
    with pytest.raises(ValueError, match=r"seed: expected 0 to 2\^64 - 1, got -1"):
        ops.Draw.of(-1, torch.arange(3), torch.arange(3))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_output": SQUARE.double()}, "model_output is torch.float64, not float32, bf"),
        ({"model_output": SQUARE.mT}, "model_output is neither contiguous nor channels last"),
        ({"noise": SQUARE.mT}, "noise is not contiguous"),
    ],
)
@pytest.mark.parametrize("backend", [TRITON])
def test_triton_says_why_not(change: dict[str, Tensor], reason: str, backend: str) -> None:
    call = arguments(CASES[0].call(0)) | change
    with pytest.raises(ValueError, match=f"'triton' cannot run this call: {reason}"):
        ops.ancestral_step_(**call, backend=backend)
    x = call["x"].clone()
    ops.ancestral_step_(**call)
    assert not torch.equal(call["x"], x)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("draws", [False, True])
@pytest.mark.parametrize("i", [-1, 3, 2**40])
def test_a_row_outside_of_the_table_is_an_index_error(i: int, draws: bool, backend: str) -> None:
    call = CASES[0]._replace(draws=draws).call(i)
    with pytest.raises(IndexError, match=rf"i: expected a row of the table, 0 to 2, got {i}$"):
        take(call, backend)
    with pytest.raises(IndexError, match=rf"i: expected a row of the table, 0 to 2, got {i}$"):
        ops.ancestral_step(**arguments(call), backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_default_dtype_changes_nothing(backend: str, other_default_dtype: torch.dtype) -> None:
    case = CASES[2]._replace(shape=(2, 1, 8, 8), wants_x_0=True)
    with default_dtype(torch.float32):
        expected = take(case.call(1), "reference")
    assert torch.get_default_dtype() == other_default_dtype
    ours = take(case.call(1), backend)
    assert same_bits(ours.x, expected.x) and same_bits(ours.x_0, expected.x_0)


@needs_library
def test_results_do_not_depend_on_threads() -> None:
    threads = torch.get_num_threads()
    case = Case("large", (5, 3, 260, 259), draws=True)
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(take(case.call(0), "cpu"))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert same_bits(result.x, results[0].x) and same_bits(result.x_0, results[0].x_0)


# ---- the registered op


def test_the_schema_is_the_call() -> None:
    schema = torch.ops.fastddpm.ancestral_step_.default._schema
    assert [a.name for a in schema.arguments] == [*StepCall._fields, "backend"]
    written = {a.name for a in schema.arguments if a.alias_info and a.alias_info.is_write}
    assert written == {"x", "x_0", "network_input", "first_nonfinite"}
    public = inspect.signature(ops.ancestral_step_).parameters
    assert set(public) - {"backend"} == set(StepCall._fields) - {"seed", "indices", "timesteps"}


@pytest.mark.parametrize("backend", [REFERENCE, CPU, TRITON])
@pytest.mark.parametrize("case", [CASES[0], NETWORK_CASES[3]], ids=lambda case: case.name)
def test_opcheck(case: Case, backend: str) -> None:
    small = case._replace(shape=(2, *case.shape[1:2], 4, 4))
    call = small.call(1)
    for tensor in (call.x_0, call.network_input):
        if tensor is not None:
            tensor.zero_()
    torch.library.opcheck(torch.ops.fastddpm.ancestral_step_.default, (*call, backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_node_in_a_compiled_step(backend: str) -> None:
    """torch.compile sees one opaque call, which works in place on the caller's tensors."""
    case = NETWORK_CASES[0]._replace(shape=(2, 3, 8, 8), output=torch.float32)

    def step(x: Tensor, call: StepCall) -> Tensor:
        output = torch.tanh(call.network_input[:, : x.shape[1]].float())
        ops.ancestral_step_(
            *(x, output, ops.Draw(call.seed, call.indices, call.timesteps), call.table, call.i),
            prediction=call.prediction,
            variance=call.variance,
            clip=call.clip,
            network_input=call.network_input,
            first_nonfinite=call.first_nonfinite,
            backend=backend,
        )
        return x * 2

    results = []
    for run in (step, torch.compile(step, backend="aot_eager", fullgraph=True)):
        call = case.call(1)
        reference.write_network_input(call.network_input, call.x)
        results.append((run(call.x, call), call))
    (plain, eager), (doubled, compiled) = results
    assert same_bits(plain, doubled) and same_bits(eager.x, compiled.x)
    assert same_bits(eager.network_input, compiled.network_input)


def test_reference_reads_the_row_it_is_told() -> None:
    """Two rows give two results: the index is read at run time, nothing is baked in."""
    rows = [take(CASES[0].call(i), "reference").x for i in range(3)]
    assert not torch.equal(rows[0], rows[1]) and not torch.equal(rows[1], rows[2])


def test_the_least_bytes_of_a_case() -> None:
    case = NETWORK_CASES[0]
    pixels = 3 * 32 * 32
    # x read and written, a half-precision output, eight half-precision channels; nothing else.
    assert case.bytes_moved() == pixels * (3 * (4 + 4 + 2) + 8 * 2)
    assert step_rows(3).shape == (3, len(STEP_COLUMNS))
