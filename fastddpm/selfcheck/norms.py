"""group_norm_silu and residual_sum: errors against float64, at most twice torch's own.

    bound = 2 · max |torch in the same dtype − float64| + 2⁻¹⁹ · max |float64|

torch's own is the reference on the CPU. The last term is for sums, which each device adds up in an
order of its own: sixteen units of float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fastddpm import ops
from fastddpm.kernels.group_norm_silu import cases as norm_cases
from fastddpm.kernels.residual_sum import cases as sum_cases
from fastddpm.ops.backends import interpreting
from fastddpm.selfcheck.outcome import Errors, Outcome, largest_difference

Tensors = Mapping[str, Tensor]
SUMS = 2.0**-19
# A call on its tensors with a backend: its results by name.
Call = Callable[[Tensors, str], dict[str, Tensor]]


def group_norm_silu(backend: str, device: torch.device) -> Outcome:
    """ops.group_norm_silu: y and total."""
    errors = Errors()
    for case, dtype in _cases(norm_cases.CASES):
        _compare(errors, case, dtype, _norm_of(case), backend, device)
    return errors.outcome(f"group_norm_silu, {backend}")


def group_norm_silu_backward(backend: str, device: torch.device) -> Outcome:
    """The derivatives of group_norm_silu for every one of its tensors."""
    errors = Errors()
    for case, dtype in _cases(norm_cases.CASES):
        _compare(errors, case, dtype, _gradients_of(_norm_of(case)), backend, device)
    return errors.outcome(f"group_norm_silu backward, {backend}")


def residual_sum(backend: str, device: torch.device) -> Outcome:
    """ops.residual_sum and ops.resampled_sum."""
    errors = Errors()
    for case, dtype in _cases(sum_cases.CASES):
        _compare(errors, case, dtype, _sum_of(case), backend, device)
    return errors.outcome(f"residual_sum, {backend}")


KERNELS: dict[str, Callable[[str, torch.device], Outcome]] = {
    "group_norm_silu": group_norm_silu,
    "group_norm_silu backward": group_norm_silu_backward,
    "residual_sum": residual_sum,
}


def _cases(cases: Any) -> Iterator[tuple[Any, torch.dtype]]:
    """The cases that the kernels take, images, in each of their dtypes."""
    dtypes = [torch.float32, torch.float16]
    if not interpreting():  # Triton's interpreter truncates to bfloat16 instead of rounding.
        dtypes.append(torch.bfloat16)
    for case in cases:
        if len(case.shape) == 4:
            yield from ((case, dtype) for dtype in dtypes)


def _compare(
    errors: Errors,
    case: Any,
    dtype: torch.dtype,
    call: Call,
    backend: str,
    device: torch.device,
) -> None:
    """Add the errors of a call's results, each under its own bound."""
    given = case.tensors(dtype)
    exact = call({name: tensor.double() for name, tensor in given.items()}, "reference")
    plain = call(given, "reference")
    own = call({name: _moved(tensor, device) for name, tensor in given.items()}, backend)
    for name, truth in exact.items():
        size = float(truth.abs().max()) if truth.numel() else 0.0
        own_error, plain_error = (largest_difference(r[name], truth) for r in (own, plain))
        bound = 2 * plain_error + SUMS * size
        errors.add(f"{case.name} {name} {str(dtype).removeprefix('torch.')}", own_error, bound)


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device, a leaf there, in its own layout."""
    return tensor.to(device).detach()


def _norm_of(case: norm_cases.Case) -> Call:
    def call(tensors: Tensors, backend: str) -> dict[str, Tensor]:
        arguments: dict[str, Any] = {**tensors, **case.settings()}
        y, total = ops.group_norm_silu(**arguments, backend=backend)
        return {"y": y, "total": total} if case.keep_total and case.sums else {"y": y}

    return call


def _sum_of(case: sum_cases.Case) -> Call:
    def call(tensors: Tensors, backend: str) -> dict[str, Tensor]:
        if case.resample is None:
            return {"total": ops.residual_sum(**tensors, backend=backend)}
        arguments: dict[str, Any] = {**tensors, "resample": case.resample}
        result, total = ops.resampled_sum(**arguments, total=case.keep_total, backend=backend)
        return {"resampled": result, "total": total} if case.keep_total else {"resampled": result}

    return call


def _gradients_of(call: Call) -> Call:
    """The derivatives of a sum over the results with fixed weights, by the tensors' names."""

    def gradients(tensors: Tensors, backend: str) -> dict[str, Tensor]:
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
        results = call(leaves, backend)
        weights = [_weights(result) for result in results.values()]
        found = torch.autograd.grad(list(results.values()), list(leaves.values()), weights)
        return dict(zip(leaves, found, strict=True))

    return gradients


def _weights(result: Tensor) -> Tensor:
    """Values of either sign in [−1, 1], in the result's dtype, device and layout."""
    generator = torch.Generator().manual_seed(result.numel())
    values = torch.rand(result.shape, generator=generator, dtype=torch.float32) * 2 - 1
    # Rounded to half precision first, so that they are the same numbers in every dtype.
    return torch.empty_like(result).copy_(values.bfloat16())
