"""q_sample: every backend against the formula and the noise specification, on every case."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from op_backends import CPU, REFERENCE, TRITON, default_dtype, same_bits

from fastddpm import GaussianDiffusion, NoiseSchedule, noise, ops
from fastddpm.kernels.q_sample.cases import CASES, Case
from fastddpm.noise import Purpose

# Output buffers start as NaN, so that an element nobody writes shows.
pytestmark = pytest.mark.usefixtures("fresh_memory_is_nan")

BACKENDS = [REFERENCE, CPU, TRITON]
DIFFUSION = GaussianDiffusion(NoiseSchedule.linear(50))


def arguments(case: Case) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    batch = case.shape[0]
    schedule = DIFFUSION.schedule
    columns = (schedule.sqrt_alphas_cumprod, schedule.sqrt_one_minus_alphas_cumprod)
    return {
        "x_0": torch.randn(case.shape, generator=generator, dtype=torch.float32),
        "t": torch.randint(0, 50, (batch,), generator=generator),
        "table": torch.stack(columns, dim=1).float(),
        "seed": noise.seed_tensor(case.seed),
        "indices": case.first_index + torch.arange(batch),
        "step": torch.arange(batch) * 5 if case.step_each else torch.tensor([3]),
    }


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_is_the_formula_with_the_specified_noise(case: Case, backend: str) -> None:
    call = arguments(case)
    x_t, z = ops.q_sample(**call, backend=backend)
    expected = noise.normal(
        case.seed, call["indices"], call["step"], case.shape[1:], Purpose.FORWARD
    )
    assert same_bits(z, expected)
    # The diffusion's own q_sample, in float32 bit for bit and in float64 up to rounding.
    assert same_bits(x_t, DIFFUSION.q_sample(call["x_0"], call["t"], z))
    exact = DIFFUSION.q_sample(call["x_0"].double(), call["t"], z.double())
    torch.testing.assert_close(x_t.double(), exact, rtol=0, atol=1e-6)
    assert x_t.is_contiguous() and z.is_contiguous()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_instruction_set_and_team_gives_the_same_bits(case: Case, isa: str) -> None:
    if case.name == "cifar":
        case = case._replace(shape=(48, 3, 32, 32))  # work for two threads
    call = arguments(case)
    expected = ops.q_sample(**call, backend="reference")
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results = ops.q_sample(**call, backend="cpu")
            assert all(same_bits(a, b) for a, b in zip(results, expected, strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_memory_layout(backend: str) -> None:
    call = arguments(CASES[0]._replace(shape=(4, 3, 8, 8)))
    expected = ops.q_sample(**call, backend="reference")
    call["x_0"] = call["x_0"].to(memory_format=torch.channels_last)
    call["table"] = call["table"].t().contiguous().t()
    for name in ("t", "indices"):
        call[name] = call[name].repeat_interleave(2)[::2]
    results = ops.q_sample(**call, backend=backend)
    assert all(same_bits(a, b) for a, b in zip(results, expected, strict=True))
    assert all(result.is_contiguous() for result in results)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_default_dtype_changes_nothing(backend: str, other_default_dtype: torch.dtype) -> None:
    call = arguments(CASES[3])
    results = ops.q_sample(**call, backend=backend)
    with default_dtype(torch.float32):
        expected = ops.q_sample(**call, backend="reference")
    assert torch.get_default_dtype() == other_default_dtype
    assert all(same_bits(a, b) for a, b in zip(results, expected, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_0": torch.zeros(3, 3, 8, 8).double()}, "x_0: expected float32"),
        ({"x_0": torch.zeros(3, 3, 8, 8).requires_grad_()}, "x_0: expected .* no gradient"),
        ({"t": torch.zeros(2, dtype=torch.int64)}, r"t: expected int64 \[3\]"),
        ({"t": torch.zeros(3)}, r"t: expected int64 \[3\], got torch.float32"),
        ({"table": torch.zeros(50, 3)}, r"table: expected float32 \[T, 2\]"),
        ({"seed": torch.zeros(1)}, r"seed: expected int64 \[1\]"),
        ({"indices": torch.arange(2), "step": torch.tensor([1])}, r"indices: expected int64 \[3\]"),
        ({"step": torch.arange(2)}, r"step: expected int64 \[1\] or \[3\]"),
        ({"backend": "gpu"}, "backend: expected 'auto', 'reference', 'cpu' or 'triton'"),
    ],
)
def test_mistakes_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ops.q_sample(**(arguments(CASES[3]) | change))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("t", [-1, 50])
def test_a_row_outside_of_the_table_is_an_index_error(t: int, backend: str) -> None:
    call = arguments(CASES[3])
    call["t"][1] = t
    with pytest.raises(IndexError, match=f"t: expected rows of the table, 0 to 49, got .*{t}"):
        ops.q_sample(**call, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(backend: str) -> None:
    call = arguments(CASES[3]._replace(shape=(2, 3, 4, 4)))
    torch.library.opcheck(torch.ops.fastddpm.q_sample.default, (*call.values(), backend))


def test_the_kernels_draw_for_their_purposes() -> None:
    pytest.importorskip("triton")
    from fastddpm.kernels.ancestral_step import triton_kernel as ancestral_kernel
    from fastddpm.kernels.q_sample import triton_kernel as q_sample_kernel

    assert q_sample_kernel.FORWARD.value == Purpose.FORWARD
    assert ancestral_kernel.REVERSE.value == Purpose.REVERSE
