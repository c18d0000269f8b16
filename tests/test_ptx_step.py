"""The compiled code of the noise, step and q_sample kernels, run as three kinds of GPU run it."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from op_backends import same_bits
from ptx import SMS, Fault, compile, execute, resources
from test_ops_ancestral_step import SIGMA_ULPS, log_variances
from test_ops_q_sample import arguments as forward_arguments
from torch import Tensor

from fastddpm import noise, ops
from fastddpm.kernels.ancestral_step import cases, reference
from fastddpm.kernels.ancestral_step import triton_kernel as step_kernel
from fastddpm.kernels.ancestral_step.call import StepCall
from fastddpm.kernels.ancestral_step.reference import LEARNED_VARIANCES
from fastddpm.kernels.common.launch import Launch
from fastddpm.kernels.normal import triton_kernel as normal_kernel
from fastddpm.kernels.q_sample import triton_kernel as q_sample_kernel
from fastddpm.kernels.q_sample.cases import CASES as FORWARD_CASES
from fastddpm.noise import Purpose

every_sm = pytest.mark.parametrize("sm", SMS)

# What the step updates, and what it may leave alone.
UPDATED = {
    "in_place": ("x_pointer", "first_nonfinite_pointer"),
    "partial": ("first_nonfinite_pointer",),
}
BY_NAME = {case.name: case for case in cases.CASES + cases.NETWORK_CASES}
# One for each way through the kernel; short enough to run always.
SHORT = [
    BY_NAME["cifar_network"]._replace(shape=(2, 3, 8, 8), wants_x_0=True),
    BY_NAME["channels_last"]._replace(shape=(2, 3, 4, 4), clip=None),
    BY_NAME["learned_network"]._replace(shape=(2, 3, 4, 4)),
    BY_NAME["learned"]._replace(shape=(2, 3, 4, 4)),
    BY_NAME["odd_network"],
    BY_NAME["padded_planes"]._replace(shape=(2, 3, 4, 4), prediction="previous_sample"),
    BY_NAME["biggest_seed"],
]
LONG = [case for case in cases.CASES + cases.NETWORK_CASES if case.name != "many_blocks"]


def taken_by_reference(call: StepCall) -> StepCall:
    z = call.noise
    if z is None:
        step = call.timesteps[call.i]
        z = noise.normal(call.seed, call.indices, step, call.x.shape[1:], Purpose.REVERSE)
    x_prev, x_0 = reference.ancestral_step(
        *(call.x, call.model_output, z, call.table, call.i),
        prediction=call.prediction,
        variance=call.variance,
        clip=call.clip,
    )
    return call._replace(x=x_prev, x_0=x_0)


def check_step(case: cases.Case, sm: int) -> None:
    ours, expected = case.call(1), taken_by_reference(case.call(1))
    execute(step_kernel.launch(ours), sm, **UPDATED)
    assert int(ours.first_nonfinite) == -1
    if ours.x_0 is not None:
        assert same_bits(ours.x_0, expected.x_0)
    assert same_bits(ours.x, expected.x)
    if ours.network_input is not None:
        rounded = torch.empty_like(ours.network_input)
        reference.write_network_input(rounded, ours.x)
        assert same_bits(ours.network_input, rounded)


@every_sm
@pytest.mark.parametrize("case", SHORT, ids=lambda case: case.name)
def test_step_is_the_reference_bit_for_bit(case: cases.Case, sm: int) -> None:
    check_step(case, sm)


@pytest.mark.slow
@every_sm
@pytest.mark.parametrize("case", LONG, ids=lambda case: case.name)
def test_step_is_the_reference_on_every_case(case: cases.Case, sm: int) -> None:
    check_step(case, sm)


@every_sm
@pytest.mark.parametrize("limits", SIGMA_ULPS)
def test_learned_sigma_is_the_reference_bit_for_bit(limits: tuple[float, float], sm: int) -> None:
    """As many log-variances as the sweep of the interpreter has; here products are truly fused."""
    call = log_variances(*limits, 99_994)
    expected = taken_by_reference(call)
    ours = call._replace(x=call.x.clone())
    execute(step_kernel.launch(ours), sm, **UPDATED)
    numbers = ~expected.x.isnan()
    assert same_bits(ours.x[numbers], expected.x[numbers]) and ours.x[~numbers].isnan().all()


@every_sm
@pytest.mark.parametrize("offset", [1, 2])
def test_bfloat16_output_at_any_address(offset: int, sm: int) -> None:
    """Two numbers are read as one word only where the address allows it."""
    call = BY_NAME["bf16"]._replace(shape=(2, 3, 4, 4)).call(1)
    expected, given = taken_by_reference(call), call.model_output
    moved = given.new_empty(given.numel() + offset)[offset:].view(given.shape).copy_(given)
    ours = call._replace(x=call.x.clone(), model_output=moved)
    execute(step_kernel.launch(ours), sm, **UPDATED)
    assert same_bits(ours.x, expected.x)


@every_sm
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_step_notes_what_is_not_finite(value: float, sm: int) -> None:
    call = SHORT[0].call(1)
    call.model_output[1, 2, 7, 7] = value
    expected = taken_by_reference(call)
    ours = call._replace(x=call.x.clone())
    execute(step_kernel.launch(ours), sm, **UPDATED)
    assert int(ours.first_nonfinite) == 1
    torch.testing.assert_close(ours.x, expected.x, rtol=0, atol=0, equal_nan=True)
    # A later step, of a smaller index, leaves the number alone.
    execute(step_kernel.launch(ours._replace(i=torch.tensor([0]))), sm, **UPDATED)
    assert int(ours.first_nonfinite) == 1


@every_sm
@pytest.mark.parametrize("name", ["big_seed", "odd", "step_each"])
def test_q_sample_is_the_reference_bit_for_bit(name: str, sm: int) -> None:
    case = next(case for case in FORWARD_CASES if case.name == name)
    call = forward_arguments(case)
    expected = ops.q_sample(**call, backend="reference")
    x_t, z = torch.empty(case.shape), torch.empty(case.shape)
    run = execute(q_sample_kernel.launch(x_t, z, *call.values()), sm)
    assert same_bits(x_t, expected[0]) and same_bits(z, expected[1])
    assert run.instructions["fma"] == 0


@every_sm
@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 7, 11)])
def test_normal_is_the_specification_bit_for_bit(shape: tuple[int, ...], sm: int) -> None:
    seed, indices, steps = 2**64 - 3, torch.tensor([0, 2**63 - 1]), torch.tensor([7, 2**24 - 1])
    out = torch.empty(2, *shape)
    execute(normal_kernel.launch(out, noise.seed_tensor(seed), indices, steps, Purpose.INITIAL), sm)
    assert same_bits(out, noise.normal(seed, indices, steps, shape, Purpose.INITIAL))


# ---- memory


def launches(shape: tuple[int, ...]) -> dict[str, tuple[Launch, int]]:
    """Each kernel on images of this shape, with the least bytes that it could move."""
    step = BY_NAME["cifar_network"]._replace(shape=shape)
    plain = BY_NAME["cifar_draws"]._replace(shape=shape)
    learned = BY_NAME["learned_network"]._replace(shape=shape)
    forward = FORWARD_CASES[0]._replace(shape=shape)
    x_t, z = torch.empty(shape), torch.empty(shape)
    call = forward_arguments(forward)
    drawn = (noise.seed_tensor(1), torch.arange(shape[0]), torch.tensor([0]), Purpose.INITIAL)
    return {
        "network": (step_kernel.launch(step.call(1)), step.bytes_moved()),
        "plain": (step_kernel.launch(plain.call(1)), plain.bytes_moved()),
        "learned": (step_kernel.launch(learned.call(1)), learned.bytes_moved()),
        "q_sample": (
            q_sample_kernel.launch(x_t, z, *call.values()),
            forward.bytes_moved(),
        ),
        "normal": (normal_kernel.launch(z, *drawn), 4 * z.numel()),
    }


NAMES = ("network", "plain", "learned", "q_sample", "normal")


@every_sm
@pytest.mark.parametrize("name", NAMES)
def test_the_least_bytes_move_in_the_widest_words(name: str, sm: int) -> None:
    launch, least = launches((1, 3, 32, 32))[name]
    settings = UPDATED if "first_nonfinite_pointer" in launch.arguments else {}
    run = execute(launch, sm, **settings)
    assert least <= run.bytes_moved <= 1.05 * least
    bulk = {"x_pointer", "output_pointer", "input_pointer", "x_0_pointer", "x_t_pointer"}
    bulk |= {"noise_pointer", "out_pointer"}
    moved = bulk & run.traffic.keys()
    assert moved
    for argument in moved:
        assert {bits for _, bits in run.traffic[argument].widths} == {128}, argument


def normals_a_thread(launch: Launch) -> float:
    constants = launch.constants
    if "COUNTERS" in constants:
        normals = 4 * constants["COUNTERS"]
    else:
        normals = constants["CHANNELS"] * constants["SPAN"] * constants["ROWS"]
    return normals / (32 * launch.num_warps)


INSTRUCTIONS = {"network": 75, "plain": 80, "learned": 90, "q_sample": 75, "normal": 65}
# A normal's fused multiply-adds, named by the specification: log-variance, exponential, sigma, sum.
FUSED = {"learned": 1 + 8 + 1 + 1}


@every_sm
@pytest.mark.parametrize("name", NAMES)
def test_products_and_sums_are_rounded_apart(name: str, sm: int) -> None:
    launch = launches((1, 3, 32, 32))[name][0]
    ptx = compile(launch, sm).ptx
    assert re.search(r"\bmul\.rn\.f32", ptx) and re.search(r"\badd\.rn\.f32", ptx)
    fused = re.findall(r"\b(?:fma|mad)\.\S*f32(x2)?", ptx)
    assert sum(2 if packed else 1 for packed in fused) == FUSED.get(name, 0) * normals_a_thread(
        launch
    )


@every_sm
@pytest.mark.parametrize("name", NAMES)
def test_machine_code_stays_within_its_bars(name: str, sm: int) -> None:
    within_bars(launches((1, 3, 32, 32))[name][0], sm, INSTRUCTIONS[name])


@every_sm
@pytest.mark.parametrize("name", ["learned_network", "cifar_draws"])
@pytest.mark.parametrize("prediction", ["epsilon", "previous_sample"])  # the others: as epsilon
@pytest.mark.parametrize("variance", LEARNED_VARIANCES)
def test_learned_variances_stay_within_the_bar(
    variance: str, prediction: str, name: str, sm: int
) -> None:
    case = BY_NAME[name]._replace(shape=(1, 3, 32, 32), variance=variance, prediction=prediction)
    within_bars(step_kernel.launch(case.call(1)), sm, INSTRUCTIONS["learned"])


def within_bars(launch: Launch, sm: int, instructions: int) -> None:
    used = resources(compile(launch, sm))
    assert used.stack == used.spills == used.shared == used.loops == 0
    assert used.registers <= 128
    assert used.instructions <= instructions * normals_a_thread(launch)
    assert used.special <= normals_a_thread(launch)


BEYOND = 2**31 // (3 * 32 * 32) + 2


def values(start: int, count: int) -> np.ndarray:
    """Element k of a large tensor: never the same in neighbouring samples, below 1 in size."""
    return (((start + np.arange(count)) * 7 % 1009) / 1009 - 0.5).astype(np.float32)


def last_sample(name: str, shape: tuple[int, ...], channels_last: bool) -> Tensor:
    size = math.prod(shape)
    data = torch.from_numpy(values((BEYOND - 1) * size, size))
    if not channels_last:
        return data.reshape(1, *shape)
    return data.reshape(1, *shape[1:], shape[0]).movedim(-1, 1)


@every_sm
def test_step_beyond_two_to_the_31_elements(sm: int) -> None:
    case = BY_NAME["channels_last"]._replace(shape=(1, 3, 32, 32), wants_x_0=False)
    small = case.call(1)
    indices = torch.arange(BEYOND)
    last = small._replace(
        x=last_sample("x", (3, 32, 32), False),
        model_output=last_sample("output", (3, 32, 32), True),
        indices=indices[-1:],
    )
    expected = taken_by_reference(last)
    layout = {"device": "meta", "dtype": torch.float32}
    large = small._replace(
        x=torch.empty(BEYOND, 3, 32, 32, **layout),
        model_output=torch.empty(BEYOND, 32, 32, 3, **layout).movedim(-1, 1),
        network_input=torch.empty(BEYOND, 32, 32, 8, device="meta", dtype=torch.bfloat16).movedim(
            -1, 1
        ),
        indices=indices,
    )
    launch = step_kernel.launch(large)
    programs = launch.grid[0] // BEYOND
    run = execute(
        launch,
        sm,
        **UPDATED,
        programs=[(launch.grid[0] - programs + k,) for k in range(programs)],
        fill={"x_pointer": values, "output_pointer": values},
    )
    size = 3 * 32 * 32
    bits, stored = run.read("x_pointer", (BEYOND - 1) * size, size)
    assert stored.all() and np.array_equal(bits, expected.x.numpy().view("uint32").ravel())
    bits, stored = run.read("input_pointer", (BEYOND - 1) * 8 * 1024, 8 * 1024)
    rounded = torch.zeros(1024, 8, dtype=torch.bfloat16)
    rounded[:, :3] = expected.x[0].flatten(1).t()
    assert stored.all()
    assert np.array_equal(bits, rounded.view(torch.int16).numpy().view("uint16").ravel())


@every_sm
def test_noise_beyond_two_to_the_31_elements(sm: int) -> None:
    out = torch.empty(BEYOND, 3, 32, 32, device="meta")
    indices, seed = torch.arange(BEYOND), noise.seed_tensor(3)
    launch = normal_kernel.launch(out, seed, indices, torch.tensor([9]), Purpose.INITIAL)
    programs = launch.grid[0] // BEYOND
    last = [(launch.grid[0] - programs + k,) for k in range(programs)]
    run = execute(launch, sm, programs=last)
    bits, stored = run.read("out_pointer", (BEYOND - 1) * 3072, 3072)
    expected = noise.normal(3, indices[-1:], 9, (3072,), Purpose.INITIAL)
    assert stored.all() and np.array_equal(bits, expected.numpy().view("uint32").ravel())


def test_a_fused_multiply_add_would_show() -> None:
    """What exact=True is for: with fusion allowed the same kernel gives other bits."""
    seed, indices, steps = noise.seed_tensor(1), torch.arange(1), torch.tensor([0])
    expected = noise.normal(1, indices, 0, (1024,), Purpose.INITIAL)
    exact = normal_kernel.launch(torch.empty(1, 1024), seed, indices, steps, Purpose.INITIAL)
    fields = {name: getattr(exact, name) for name in exact.__dataclass_fields__}
    fused = Launch(**(fields | {"exact": False}))
    run = execute(fused, 90)
    assert run.instructions["fma"] > 0
    assert not same_bits(fused.arguments["out_pointer"], expected)
    execute(exact, 90)
    assert same_bits(exact.arguments["out_pointer"], expected)


def test_a_short_buffer_is_a_fault() -> None:
    """The executor sees what lies outside: one pixel less than the kernel is told of."""
    call = SHORT[0].call(1)
    launch = step_kernel.launch(call)
    launch.arguments["x_pointer"] = call.x.flatten()[:-4]
    with pytest.raises(Fault):
        execute(launch, 90, **UPDATED)
