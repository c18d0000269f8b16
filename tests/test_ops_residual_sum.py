"""residual_sum and resampled_sum: reference, registered op and Triton kernel on every case."""

from __future__ import annotations

import pytest
import torch
from op_backends import REFERENCE, TRITON, needs_interpreter
from torch import Tensor
from torch.nn import functional as F

from fastddpm import ops
from fastddpm.kernels.residual_sum.cases import CASES, Case

pytestmark = pytest.mark.usefixtures("fresh_memory_is_nan", "casts_round_to_nearest")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
by_name = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
BY_NAME = {case.name: case for case in CASES}


def formula(case: Case, t: dict[str, Tensor]) -> tuple[Tensor | None, Tensor]:
    """(resampled, total) in float64, element by element."""
    t = {name: tensor.double() for name, tensor in t.items()}
    total = t["x"]
    if "row" in t:
        total = total + t["row"].expand(total.shape[:2])[:, :, None, None]
    if "residual" in t:
        total = total + t["residual"]
    if case.resample == "pad":
        return F.pad(total, (0, 1, 0, 1)), total
    if case.resample == "double":
        return total.repeat_interleave(2, 2).repeat_interleave(2, 3), total
    return None, total


def run(case: Case, tensors: dict[str, Tensor], backend: str) -> tuple[Tensor | None, Tensor]:
    if case.resample is None:
        return None, ops.residual_sum(**tensors, backend=backend)
    keep = case.keep_total
    return ops.resampled_sum(**tensors, resample=case.resample, total=keep, backend=backend)


@pytest.mark.parametrize("backend", [REFERENCE, TRITON])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@by_name
def test_is_the_formula(case: Case, dtype: torch.dtype, backend: str) -> None:
    tensors = case.tensors(dtype)
    resampled, total = run(case, tensors, backend)
    exact_resampled, exact = formula(case, tensors)
    # The kernel adds in float32 and rounds once, torch after each of two sums.
    eps = torch.finfo(dtype).eps
    tolerance = {"rtol": eps, "atol": 4 * eps}
    if case.keep_total:
        assert total.dtype == dtype
        torch.testing.assert_close(total.double(), exact, **tolerance)
    else:
        assert total.numel() == 0
    if resampled is not None:
        assert resampled.dtype == dtype
        torch.testing.assert_close(resampled.double(), exact_resampled, **tolerance)


@needs_interpreter
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@by_name
def test_the_kernel_rounds_once(case: Case, dtype: torch.dtype) -> None:
    tensors = case.tensors(dtype)
    resampled, total = run(case, tensors, "triton")
    wide = {name: tensor.float() for name, tensor in tensors.items()}
    expected_resampled, expected = run(case, wide, "reference")
    assert torch.equal(total, expected.to(dtype))
    if resampled is not None:
        assert torch.equal(resampled, expected_resampled.to(dtype))
        assert resampled.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("backend", [REFERENCE, TRITON])
@pytest.mark.parametrize("through", [(True, True), (True, False), (False, True)])
@by_name
def test_gradients(case: Case, through: tuple[bool, bool], backend: str) -> None:
    tensors = case.tensors(torch.float32)

    def gradients(t: dict[str, Tensor], results: tuple[Tensor | None, Tensor]) -> list[Tensor]:
        generator = torch.Generator().manual_seed(3)
        loss = 0.0 * t["x"].sum()
        for wanted, result in zip(through, results, strict=True):
            if wanted and result is not None and (result is not results[1] or case.keep_total):
                seed = torch.randn(result.shape, generator=generator)
                loss = loss + (result * seed).sum()
        return list(torch.autograd.grad(loss, list(t.values()), materialize_grads=True))

    leaves = {name: t.clone().requires_grad_() for name, t in tensors.items()}
    actual = gradients(leaves, run(case, leaves, backend))
    exact = {name: t.double().requires_grad_() for name, t in tensors.items()}
    for ours, expected in zip(actual, gradients(exact, formula(case, exact)), strict=True):
        torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", [REFERENCE, TRITON])
def test_nothing_added_is_x_itself(backend: str) -> None:
    x = BY_NAME["pad_alone"].tensors(torch.float32)["x"]
    assert ops.residual_sum(x, backend=backend) is x
    assert ops.resampled_sum(x, backend=backend)[1] is x


@pytest.mark.parametrize("shape", [(2, 4, 6), (2, 4, 3, 4, 6)])
def test_other_dimensions_take_the_reference(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    padded, _ = ops.resampled_sum(x, resample="pad")
    doubled, _ = ops.resampled_sum(x, resample="double")
    # A volume keeps its depth.
    changed = range(max(2, x.dim() - 2), x.dim())
    expected_padded, expected_doubled = x, x
    for dim in changed:
        zeros = torch.zeros_like(expected_padded.narrow(dim, 0, 1))
        expected_padded = torch.cat([expected_padded, zeros], dim)
        expected_doubled = expected_doubled.repeat_interleave(2, dim)
    assert torch.equal(padded, expected_padded) and torch.equal(doubled, expected_doubled)
    with pytest.raises(ValueError, match="spatial dimensions"):
        ops.resampled_sum(x, resample="pad", backend="triton")


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("resample", [None, "pad", "double"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_opcheck(layout: torch.memory_format, resample: str | None, grad: bool) -> None:
    torch.use_deterministic_algorithms(False)
    x, residual = (
        torch.randn(2, 4, 3, 5).contiguous(memory_format=layout).requires_grad_(grad)
        for _ in range(2)
    )
    row = torch.randn(4, requires_grad=grad)
    for keep in (True,) if resample is None else (True, False):
        arguments = (x, row, residual, resample, keep, "reference")
        torch.library.opcheck(torch.ops.fastddpm.residual_sum.default, arguments)


def test_refusals() -> None:
    x = torch.zeros(2, 8, 4, 4)
    with pytest.raises(ValueError, match=r"row must be \[2, 8\] or \[8\], got \[4\]"):
        ops.residual_sum(x, row=torch.zeros(4))
    with pytest.raises(ValueError, match=r"residual must be \[2, 8, 4, 4\], got \[2, 8, 4, 1\]"):
        ops.residual_sum(x, residual=torch.zeros(2, 8, 4, 1))
    with pytest.raises(ValueError, match="resample: expected one of"):
        ops.resampled_sum(x, resample="halve")
    with pytest.raises(ValueError, match="x is not channels_last"):
        ops.residual_sum(x, row=torch.zeros(8), backend="triton")
