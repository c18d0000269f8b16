"""The compiled code of group_norm_silu and residual_sum, run as three kinds of GPU run it.

The executor fails a kernel that reads outside of its tensors, misaligned or uninitialised, leaves
a result unwritten or races; here its numbers are held to twice torch's own error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from ptx import SMS, execute
from ptx.launches import emulated, recorded
from test_ops_group_norm import formula, gradients, packed, random_seeds
from test_ops_residual_sum import CASES as SUM_CASES
from test_ops_residual_sum import Case as SumCase
from test_ops_residual_sum import run as run_sum
from test_triton_group_norm import NONEMPTY, assert_at_most_twice, run
from torch import Tensor

from fastddpm.kernels.group_norm_silu import triton_backward, triton_kernel
from fastddpm.kernels.group_norm_silu.cases import Case
from fastddpm.kernels.residual_sum import triton_kernel as sum_kernel

every_sm = pytest.mark.parametrize("sm", SMS)

# One for each way through the kernels, on a sample or two: one pass, padded, joined, split.
SHORT = (
    Case("plain", (1, 32, 4, 4), 8),
    Case("film", (2, 16, 8, 4), 4, "each", film=True, keep_total=False),
    Case("threes", (1, 16, 5, 3), 8, "shared", True, joined=8),
    Case("wide", (1, 64, 17, 16), 1, "each", True, activation=None),
)
SPLIT = (
    Case("split", (1, 16, 33, 32), 2, "each", True, joined=16),
    Case("split_padded", (1, 24, 35, 30), 2, "shared", keep_total=False),
)


# Torch's own sum of a few numbers may be exact by chance.
SLACK = torch.finfo(torch.float32).eps


# With few elements, or partial sums to merge, a product may meet another thread's in a sum.
SHARED = (
    Case("few", (1, 8, 3, 3), 1),
    Case("merged", (1, 32, 34, 31), 4, "shared", True, joined=16, keep_total=False),
)


def check(case: Case, sm: int, dtype: torch.dtype) -> None:
    tensors = case.tensors(dtype)
    exact, exact_total = formula(case, tensors)
    torchs, torchs_total = run(case, packed(tensors), "reference")
    with emulated(sm):
        y, total = run(case, tensors)
    assert_at_most_twice("y", y, torchs, exact)
    if case.keep_total:
        assert_at_most_twice("total", total, torchs_total, exact_total)


def check_gradients(case: Case, sm: int, dtype: torch.dtype) -> None:
    tensors, seeds = case.tensors(dtype), random_seeds(case, dtype)
    exact = gradients(case, tensors, lambda t: formula(case, t), seeds)
    torchs = gradients(case, packed(tensors), lambda t: run(case, t, "reference"), seeds)
    with emulated(sm, partial=("sums",)):
        ours = gradients(case, tensors, lambda t: run(case, t), seeds)
    for name, gradient in ours.items():
        slack = SLACK if gradient.dtype == torch.float32 else 0.0
        assert_at_most_twice(name, gradient, torchs[name], exact[name], slack)


@every_sm
@pytest.mark.parametrize("case", SHORT, ids=lambda case: case.name)
def test_forward(case: Case, sm: int) -> None:
    check(case, sm, torch.bfloat16)


@every_sm
@pytest.mark.parametrize("case", SPLIT, ids=lambda case: case.name)
def test_forward_split(case: Case, sm: int) -> None:
    check(case, sm, torch.bfloat16)


@every_sm
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_forward_in_other_dtypes(dtype: torch.dtype, sm: int) -> None:
    check(SHORT[2], sm, dtype)


@every_sm
@pytest.mark.parametrize("case", [SHORT[2], SPLIT[1]], ids=lambda case: case.name)
def test_backward(case: Case, sm: int) -> None:
    check_gradients(case, sm, torch.bfloat16)


@every_sm
@pytest.mark.parametrize("case", SHARED, ids=lambda case: case.name)
def test_threads_agree_on_the_last_bit_of_what_they_share(case: Case, sm: int) -> None:
    """A product fused into a sum between threads would make them disagree: the executor sees it."""
    check_gradients(case, sm, torch.float32)


@pytest.mark.nightly
@every_sm
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", NONEMPTY, ids=lambda case: case.name)
def test_every_case(case: Case, dtype: torch.dtype, sm: int) -> None:
    check(case, sm, dtype)
    check_gradients(case, sm, dtype)


# ---- residual_sum


def check_sum(case: SumCase, sm: int, dtype: torch.dtype) -> None:
    tensors = case.tensors(dtype)
    wide = {name: tensor.float() for name, tensor in tensors.items()}
    expected = run_sum(case, wide, "reference")
    with emulated(sm):
        actual = run_sum(case, tensors, "triton")
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours is theirs is None or torch.equal(ours, theirs.to(dtype))


@every_sm
@pytest.mark.parametrize("name", ["mnist_7_double", "odd_pad", "row"])
def test_sum(name: str, sm: int) -> None:
    case = next(case for case in SUM_CASES if case.name == name)
    check_sum(case, sm, torch.bfloat16)


@pytest.mark.nightly
@every_sm
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", SUM_CASES, ids=lambda case: case.name)
def test_sum_on_every_case(case: SumCase, dtype: torch.dtype, sm: int) -> None:
    check_sum(case, sm, dtype)


# ---- memory

# Whole vectors and no padding: what the networks of the README have.
MOVED = (
    Case("row", (1, 32, 16, 16), 8, "shared", keep_total=False),
    Case("residual", (1, 64, 8, 8), 8, "shared", True),
    Case("joined", (1, 64, 8, 8), 8, "shared", True, joined=64),
    Case("straddling", (1, 64, 8, 8), 8, "shared", True, joined=32),
)
MAPS = {"x", "residual", "skip", "y", "total"}


@every_sm
@pytest.mark.parametrize("case", MOVED, ids=lambda case: case.name)
def test_the_least_bytes_move_in_the_widest_words(case: Case, sm: int) -> None:
    with emulated(sm) as runs:
        run(case, case.tensors(torch.bfloat16))
    (only,) = runs
    # Each sample reads the parameters again, which a cache holds.
    assert only.bytes_moved <= 1.05 * case.bytes_moved(2)
    for name in MAPS & only.traffic.keys():
        assert {bits for _, bits in only.traffic[name].widths} == {128}, name


@every_sm
@pytest.mark.parametrize("resample", [None, "pad", "double"])
def test_a_sum_moves_the_least_bytes(resample: str | None, sm: int) -> None:
    case = SumCase("moved", (1, 64, 8, 8), "shared", True, resample)
    with emulated(sm) as runs:
        run_sum(case, case.tensors(torch.bfloat16), "triton")
    (only,) = runs
    assert only.bytes_moved <= 1.05 * case.bytes_moved(2)
    for name in ({"resampled"} | MAPS) & only.traffic.keys():
        assert {bits for _, bits in only.traffic[name].widths} == {128}, name


# ---- maps of more than 2^31 elements, in which an offset of 32 bits would turn negative

HUGE = {
    "batch_4100": (4100, 512, 32, 32),
    "batch_4100_in_parts": (4100, 384, 32, 32),
    "size_256": (260, 128, 256, 256),
}


def image(shape: Sequence[int]) -> Tensor:
    batch, channels, height, width = shape
    return torch.empty(batch, height, width, channels, dtype=torch.bfloat16, device="meta").movedim(
        -1, 1
    )


def constant(value: float) -> Any:
    bits = int(torch.tensor(value, dtype=torch.bfloat16).view(torch.int16)) & 0xFFFF
    return lambda start, count: np.full(count, bits, np.uint16)


def number(value: float) -> Any:
    return lambda start, count: np.full(count, value, np.float32)


def last_program(launch: Any) -> list[tuple[int, int, int]]:
    return [(launch.grid[0] - 1, 0, 0)]


@pytest.mark.parametrize("name", HUGE)
def test_the_last_program_of_a_huge_batch_writes_the_last_elements(name: str) -> None:
    """x = 2 everywhere, so xhat = 0, y = silu(bias) and total = x + residual = 4."""
    shape = HUGE[name]
    batch, channels = shape[:2]
    x, y, total, residual = (image(shape) for _ in range(4))
    weight, bias = torch.ones(channels), torch.full((channels,), 3.0)
    mean, rstd = (torch.empty(batch, 32, device="meta") for _ in range(2))
    none = {"row": None, "skip": None, "scale": None, "shift": None}
    launched = triton_kernel.launches(
        *(x, weight, bias, 1e-6),
        **none,
        **{"residual": residual, "silu": True, "y": y, "total": total, "mean": mean, "rstd": rstd},
    )
    silu = torch.nn.functional.silu(torch.tensor(3.0)).item()
    maps, found = {"y": silu, "total": 4.0}, {}
    for launch in launched:
        # The second of two reads the sum and its statistics.
        held = 2.0 if launch.arguments["x"] is x else 4.0
        fill = {"x": constant(held), "residual": constant(2.0)}
        fill |= {"partial_mean": number(4.0), "partial_m2": number(0.0)}
        fill = {n: v for n, v in fill.items() if launch.arguments.get(n) is not None}
        fill = {n: v for n, v in fill.items() if n not in launch.writes}
        run = execute(launch, 90, programs=last_program(launch), fill=fill)
        for name in maps.keys() & set(launch.writes):
            found[name] = run.read(name, x.numel() - 16, 16)
    assert found.keys() == maps.keys()
    for name, (values, stored) in found.items():
        assert stored.all() and (values == constant(maps[name])(0, 16)).all()


@pytest.mark.parametrize("name", HUGE)
def test_the_last_program_of_a_huge_sum(name: str) -> None:
    shape = HUGE[name]
    x, total = image(shape), image(shape)
    launch = sum_kernel.launch(x, None, image(shape), None, total, None)
    twos = {"x": constant(2.0), "residual": constant(2.0)}
    run = execute(launch, 90, programs=last_program(launch), fill=twos)
    values, stored = run.read("total", x.numel() - 16, 16)
    assert stored.all() and (values == constant(4.0)(0, 16)).all()


@pytest.mark.parametrize("name", HUGE)
def test_the_last_program_of_a_huge_backward(name: str) -> None:
    """With a gradient of zero dx = d_total."""
    shape = HUGE[name]
    batch, channels = shape[:2]
    weight, bias = torch.ones(channels), torch.zeros(channels)
    mean, rstd = (torch.zeros(batch, 32, device="meta") for _ in range(2))
    sums = torch.empty(2, batch, channels, device="meta")
    maps = {name: image(shape) for name in ("dy", "d_total", "x", "dx")}
    last = triton_backward.launches(
        *(maps["dy"], maps["d_total"], maps["x"], weight, bias, mean, rstd),
        **{"row": None, "scale": None, "shift": None, "silu": True, "dx": maps["dx"]},
        sums=sums,
    )[-1]
    zeros = {name: lambda start, count: np.zeros(count, np.float32) for name in ("mean", "rstd")}
    zeros["partials"] = zeros["mean"]
    fill = zeros | {"dy": constant(0.0), "d_total": constant(5.0), "x": constant(2.0)}
    fill = {name: value for name, value in fill.items() if name in last.arguments}
    run = execute(last, 90, programs=last_program(last), fill=fill)
    values, stored = run.read("dx", maps["x"].numel() - 16, 16)
    assert stored.all() and (values == constant(5.0)(0, 16)).all()


def test_the_registered_op_launches_what_is_proven_here() -> None:
    with recorded() as launches:
        run(MOVED[0], MOVED[0].tensors(torch.bfloat16))
    assert [launch.name for launch in launches] == ["group_norm_silu_one_pass"]
