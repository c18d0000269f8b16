"""normal: every backend against the specification, on every case."""

from __future__ import annotations

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
from fastddpm.kernels.normal.cases import CASES, Case
from fastddpm.noise import Purpose

# Output buffers start as NaN, so that an element nobody writes shows.
pytestmark = pytest.mark.usefixtures("fresh_memory_is_nan")


def indices_of(case: Case) -> Tensor:
    return torch.tensor([case.first_index + k for k in range(case.batch)], dtype=torch.int64)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_cpu_is_the_specification_bit_for_bit(case: Case, isa: str) -> None:
    call = (case.seed, indices_of(case), case.step, case.shape, Purpose.REVERSE)
    with instruction_set(isa):
        assert same_bits(ops.normal(*call, backend="cpu"), noise.normal(*call))


@pytest.mark.parametrize("backend", [TRITON])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_triton_is_the_specification_bit_for_bit(case: Case, backend: str) -> None:
    # Smaller than the case in the interpreter, but still several programs a sample.
    shape = (3, 25, 31) if case.name == "many_blocks" else case.shape
    call = (case.seed, indices_of(case), case.step, shape, Purpose.REVERSE)
    assert same_bits(ops.normal(*call, backend=backend), noise.normal(*call))


@pytest.mark.parametrize("backend", [REFERENCE, CPU, TRITON])
@pytest.mark.parametrize("purpose", Purpose)
def test_for_every_purpose_and_step_tensor(purpose: Purpose, backend: str) -> None:
    indices, steps = torch.arange(10)[::2], torch.tensor([5, 0, 999, 2**24 - 1, 5])
    for step in (steps, steps[:1], 7):
        call = (2**63 + 1, indices, step, (3, 5), purpose)
        assert same_bits(ops.normal(*call, backend=backend), noise.normal(*call))


@pytest.mark.parametrize("backend", [REFERENCE, CPU, TRITON])
@pytest.mark.parametrize("seed", [0, 1, 2**32 + 5, 2**63, 2**64 - 1])
def test_a_seed_may_be_a_tensor(seed: int, backend: str) -> None:
    rest = (torch.arange(3), 17, (2, 5), Purpose.INITIAL)
    tensor = noise.seed_tensor(seed)
    assert tensor.dtype == torch.int64 and int(tensor) % 2**64 == seed
    assert same_bits(ops.normal(tensor, *rest, backend=backend), noise.normal(seed, *rest))
    # The upper word counts too.
    other = noise.seed_tensor(seed ^ (1 << 40))
    assert not torch.equal(ops.normal(other, *rest, backend=backend), noise.normal(seed, *rest))


@pytest.mark.parametrize("backend", [REFERENCE, CPU, TRITON])
def test_the_default_dtype_changes_nothing(backend: str, other_default_dtype: torch.dtype) -> None:
    call = (4, torch.arange(3), 3, (2, 5), Purpose.REVERSE)
    z = ops.normal(*call, backend=backend)
    with default_dtype(torch.float32):
        assert same_bits(z, noise.normal(*call))
    assert torch.get_default_dtype() == other_default_dtype


@needs_library
def test_the_result_does_not_depend_on_threads() -> None:
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            call = (4, torch.arange(5), 3, (3, 260, 259), Purpose.REVERSE)
            results.append(ops.normal(*call, backend="cpu"))
    finally:
        torch.set_num_threads(threads)
    assert all(same_bits(result, results[0]) for result in results[1:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": -1}, r"seed: expected 0 to 2\^64 - 1, got -1"),
        ({"seed": torch.tensor([1.0])}, r"seed: expected int64 \[1\], got torch.float32"),
        ({"step": 2**24}, "step: expected 0 to"),
        ({"indices": torch.zeros(2)}, "indices: expected int64"),
        ({"shape": (3, -1)}, "shape: expected sizes"),
        ({"backend": "gpu"}, "backend: expected 'auto', 'reference', 'cpu' or 'triton'"),
    ],
)
def test_mistakes_are_named(change: dict[str, object], message: str) -> None:
    call = {"seed": 0, "indices": torch.arange(2), "step": 1, "shape": (3,), "purpose": 1} | change
    with pytest.raises(ValueError, match=message):
        ops.normal(**call)


@pytest.mark.parametrize("backend", [TRITON])
def test_triton_says_why_not(backend: str) -> None:
    with pytest.raises(ValueError, match="'triton' cannot run this call: a sample has more than"):
        ops.normal(0, torch.arange(0), 0, (2**30 + 1,), Purpose.INITIAL, backend=backend)


@pytest.mark.parametrize("backend", [REFERENCE, CPU, TRITON])
def test_opcheck(backend: str) -> None:
    call = (noise.seed_tensor(5), torch.arange(3), torch.tensor([7]), [2, 4], 1, backend)
    torch.library.opcheck(torch.ops.fastddpm.normal.default, call)


def test_triton_constants_are_the_specifications() -> None:
    """A constant changed on one side shows here by name before it shows in the bits."""
    pytest.importorskip("triton")
    from fastddpm.kernels.common import philox

    assert tuple(philox.LOG.value) == noise.LOG
    assert tuple(philox.SIN.value) == noise.SIN
    assert tuple(philox.COS.value) == noise.COS
    assert philox.MINUS_TWO_LN_2.value == noise.MINUS_TWO_LN_2
    assert philox.SQRT_HALF_BITS.value == noise.SQRT_HALF_BITS
    multipliers = (philox.PHILOX_MULTIPLIER_0.value, philox.PHILOX_MULTIPLIER_1.value)
    increments = (philox.PHILOX_KEY_INCREMENT_0.value, philox.PHILOX_KEY_INCREMENT_1.value)
    assert multipliers == noise.PHILOX_MULTIPLIERS
    assert increments == noise.PHILOX_KEY_INCREMENTS
    assert philox.STEP_MASK.value == (1 << noise.STEP_BITS) - 1
