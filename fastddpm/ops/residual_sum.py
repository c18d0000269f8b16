"""The sum at the end of a residual block, by itself or with the resampling that follows.

total = x + row + residual. Specification: kernels/residual_sum/reference.py.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastddpm.kernels.residual_sum import reference
from fastddpm.kernels.residual_sum.reference import RESAMPLES, sum_over_positions
from fastddpm.ops.backends import asked, choose_backend, triton_unsupported
from fastddpm.ops.layout import empty_as, laid_out_as
from fastddpm.ops.registry import register, register_derivative


def residual_sum(
    x: Tensor, *, row: Tensor | None = None, residual: Tensor | None = None, backend: str = "auto"
) -> Tensor:
    """total = x + row + residual.

    Args:
        x: [B, C, *spatial], floating.
        row: [B, C], or [C] for all samples alike; None: nothing.
        residual: like x; None: nothing.
        backend: "auto", "reference" or "triton". On a CPU "auto" and "reference" are plain torch.

    Returns:
        [B, C, *spatial] in the dtype of x; x itself if there is nothing to add.

    Raises:
        ValueError: for shapes that do not agree, or a backend asked for by name that cannot run
            this call.
    """
    _check(x, row, residual)
    if row is None and residual is None:
        return x
    backend = asked(backend)
    if _is_plain(x, backend):
        total: Tensor = reference.residual_sum(x, row=row, residual=residual)
        return total
    total, _ = RESIDUAL_SUM(x, row, residual, None, True, backend)
    return total


def resampled_sum(
    x: Tensor,
    *,
    row: Tensor | None = None,
    residual: Tensor | None = None,
    resample: str = "pad",
    total: bool = True,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """total = x + row + residual, and the same resampled.

    Args:
        x: [B, C, *spatial], floating.
        row: [B, C], or [C] for all samples alike; None: nothing.
        residual: like x; None: nothing.
        resample: "pad", one zero row at the bottom and one zero column at the right, or "double",
            nearest-neighbour upsampling by two.
        total: False if the sum itself is not wanted.
        backend: "auto", "reference" or "triton". On a CPU "auto" and "reference" are plain torch.

    Returns:
        (resampled, total): [B, C, H + 1, W + 1] or [B, C, 2H, 2W], and [B, C, H, W], in the dtype
        of x. total is x itself if there is nothing to add, and empty if it is not wanted.

    Raises:
        ValueError: for shapes that do not agree, an unknown resampling, or a backend asked for by
            name that cannot run this call.
    """
    _check(x, row, residual)
    if resample not in RESAMPLES:
        raise ValueError(f"resample: expected one of {RESAMPLES}, got {resample!r}")
    backend = asked(backend)
    nothing_added = row is None and residual is None
    if _is_plain(x, backend):
        the_sum = reference.residual_sum(x, row=row, residual=residual)
        result = reference.resampled(the_sum, resample)
    else:
        keep = total and not nothing_added
        the_sum, result = RESIDUAL_SUM(x, row, residual, resample, keep, backend)
    if not total:
        return result, x.new_empty(0)
    return result, x if nothing_added else the_sum


def unsupported(x: Tensor, row: Tensor | None, residual: Tensor | None) -> list[str]:
    """Why the Triton kernel cannot run this call; empty if it can."""
    reasons = triton_unsupported({"x": x, "row": row, "residual": residual})
    if reasons:
        return reasons
    from fastddpm.kernels.residual_sum import triton_kernel

    found: list[str] = triton_kernel.unsupported(x, row=row, residual=residual)
    return found


def _is_plain(x: Tensor, backend: str) -> bool:
    return x.device.type == "cpu" and backend in ("auto", "reference")


def _check(x: Tensor, row: Tensor | None, residual: Tensor | None) -> None:
    if x.dim() < 3:
        raise ValueError(f"x must be [B, C, *spatial], got {list(x.shape)}")
    rows = (tuple(x.shape[:2]), tuple(x.shape[1:2]))
    if row is not None and tuple(row.shape) not in rows:
        raise ValueError(f"row must be {list(rows[0])} or {list(rows[1])}, got {list(row.shape)}")
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"residual must be {list(x.shape)}, got {list(residual.shape)}")


# ---- the registered op


def _shape_of_resampled(x: Tensor, resample: str) -> list[int]:
    changed = min(x.dim() - 2, 2)
    sizes = [size + 1 if resample == "pad" else 2 * size for size in x.shape[-changed:]]
    return [*x.shape[:-changed], *sizes]


def _empty_results(x: Tensor, resample: str | None, keep_total: bool) -> tuple[Tensor, Tensor]:
    total = empty_as(x) if keep_total else x.new_empty(0)
    if resample is None:
        return total, x.new_empty(0)
    return total, empty_as(x, _shape_of_resampled(x, resample))


def _forward(
    x: Tensor,
    row: Tensor | None,
    residual: Tensor | None,
    resample: str | None,
    keep_total: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """(total, resampled); what is not asked for has no elements."""
    reasons = {"triton": unsupported(x, row, residual)}
    if choose_backend("residual_sum", backend, x.device, reasons) == "triton":
        from fastddpm.kernels.residual_sum import triton_kernel

        total, result = _empty_results(x, resample, keep_total)
        triton_kernel.launch(
            *(x, row, residual, resample),
            total if keep_total else None,
            None if resample is None else result,
        ).run()
        return total, result
    total = reference.residual_sum(x, row=row, residual=residual)
    result = x.new_empty(0) if resample is None else reference.resampled(total, resample)
    total = laid_out_as(x, total) if keep_total else x.new_empty(0)
    return total, result if resample is None else laid_out_as(x, result)


def _fake_forward(
    x: Tensor,
    row: Tensor | None,
    residual: Tensor | None,
    resample: str | None,
    keep_total: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return _empty_results(x, resample, keep_total)


RESIDUAL_SUM = register(
    "residual_sum(Tensor x, Tensor? row, Tensor? residual, str? resample, bool keep_total, "
    "str backend) -> (Tensor total, Tensor resampled)",
    _forward,
    _fake_forward,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, row, _, resample, keep_total, _ = inputs
    asked = (keep_total, resample is not None)
    ctx.mark_non_differentiable(*(t for t, want in zip(output, asked, strict=True) if not want))
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(row)
    ctx.resample = resample


def _derivative(
    ctx: Any, d_total: Tensor | None, d_resampled: Tensor | None
) -> tuple[Tensor | None, ...]:
    d = d_total
    if d_resampled is not None:
        gathered = reference.resampled_backward(d_resampled, ctx.resample)
        d = gathered if d is None else gathered + d
    (row,) = ctx.saved_tensors
    needs = ctx.needs_input_grad
    if d is None:
        return (None,) * len(needs)
    d_row = sum_over_positions(d, row) if needs[1] else None
    return d if needs[0] else None, d_row, d if needs[2] else None, None, None, None


register_derivative(RESIDUAL_SUM, _derivative, _setup_context)
