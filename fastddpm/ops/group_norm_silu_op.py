"""fastddpm::group_norm_silu and fastddpm::group_norm_silu_backward as torch.library ops.

Between the two travel total (or x and row, where total was not kept) and the statistics of the
groups; everything else is computed again, because reading is cheaper than storing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastddpm.kernels.group_norm_silu import reference
from fastddpm.kernels.residual_sum.reference import residual_sum
from fastddpm.ops.backends import choose_backend, triton_unsupported
from fastddpm.ops.layout import empty_as, laid_out_as
from fastddpm.ops.registry import register, register_derivative


def _wide(x: Tensor) -> torch.dtype:
    """The dtype of statistics and sums: float32, or float64 for float64."""
    return torch.promote_types(x.dtype, torch.float32)


def _shape_of_total(x: Tensor, skip: Tensor | None) -> tuple[int, ...]:
    joined = 0 if skip is None else skip.shape[1]
    return (x.shape[0], x.shape[1] + joined, *x.shape[2:])


# ---- forward


def _empty_results(
    x: Tensor, num_groups: int, skip: Tensor | None, keep_total: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y = empty_as(x, _shape_of_total(x, skip))
    total = empty_as(y) if keep_total else x.new_empty(0)
    mean, rstd = (x.new_empty((x.shape[0], num_groups), dtype=_wide(x)) for _ in range(2))
    return y, total, mean, rstd


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float,
    row: Tensor | None,
    residual: Tensor | None,
    skip: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    silu: bool,
    keep_total: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(y, total, mean, rstd); total has no elements unless it is kept."""
    parts = {"row": row, "residual": residual, "skip": skip, "scale": scale, "shift": shift}
    reasons = {"triton": unsupported(x, weight=weight, bias=bias, **parts)}
    if choose_backend("group_norm_silu", backend, x.device, reasons) == "triton":
        from fastddpm.kernels.group_norm_silu import triton_kernel

        y, total, mean, rstd = results = _empty_results(x, num_groups, skip, keep_total)
        kept = total if keep_total else None
        outputs = {"y": y, "total": kept, "mean": mean, "rstd": rstd, "silu": silu}
        for launch in triton_kernel.launches(x, weight, bias, eps, **parts, **outputs):
            launch.run()
        return results
    y, total = reference.group_norm_silu(
        *(x, weight, bias, num_groups, eps), **parts, activation="silu" if silu else None
    )
    mean, rstd = reference.group_statistics(total, num_groups, eps)
    return laid_out_as(x, y), laid_out_as(x, total) if keep_total else x.new_empty(0), mean, rstd


def _fake_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float,
    row: Tensor | None,
    residual: Tensor | None,
    skip: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    silu: bool,
    keep_total: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _empty_results(x, num_groups, skip, keep_total)


def unsupported(x: Tensor, **others: Tensor | None) -> list[str]:
    """Why the Triton kernels cannot run on x and the other arguments; empty if they can."""
    reasons = triton_unsupported({"x": x, **others})
    if reasons:
        return reasons
    from fastddpm.kernels.group_norm_silu import triton_kernel

    found: list[str] = triton_kernel.unsupported(x, **others)
    return found


GROUP_NORM_SILU = register(
    "group_norm_silu(Tensor x, Tensor weight, Tensor bias, int num_groups, float eps, Tensor? row, "
    "Tensor? residual, Tensor? skip, Tensor? scale, Tensor? shift, bool silu, bool keep_total, "
    "str backend) -> (Tensor y, Tensor total, Tensor mean, Tensor rstd)",
    _forward,
    _fake_forward,
)


# ---- backward


def _empty_gradients(x: Tensor, needs_dx: bool, needs_row: bool) -> tuple[Tensor, Tensor]:
    dx = empty_as(x) if needs_dx else x.new_empty(0)
    return dx, x.new_empty((3 if needs_row else 2, *x.shape[:2]), dtype=_wide(x))


def _backward(
    dy: Tensor,
    d_total: Tensor | None,
    x: Tensor,
    row: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    silu: bool,
    needs_dx: bool,
    needs_row: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """dx for total = x + row, and Σ dz, Σ dz·xhat and, if the row needs it, Σ dx: [2 or 3, B, C].

    Σ dx is that of the dx written: needs_row asks for needs_dx.
    """
    rows = {"row": row, "scale": scale, "shift": shift}
    reasons = {"triton": unsupported(x, weight=weight, bias=bias, **rows)}
    if choose_backend("group_norm_silu", backend, x.device, reasons) == "triton":
        from fastddpm.kernels.group_norm_silu import triton_backward

        dx, sums = _empty_gradients(x, needs_dx, needs_row)
        # A gradient comes in the layout that its maker chose; a convolution's is channels_last.
        gradients = laid_out_as(x, dy), None if d_total is None else laid_out_as(x, d_total)
        for launch in triton_backward.launches(
            *(*gradients, x, weight, bias, mean, rstd),
            **rows,
            silu=silu,
            dx=dx if needs_dx else None,
            sums=sums,
        ):
            launch.run()
        return dx, sums
    dx, sums = reference.group_norm_silu_backward(
        *(dy, d_total, residual_sum(x, row=row), weight, bias, mean, rstd),
        scale=scale,
        shift=shift,
        activation="silu" if silu else None,
    )
    dx = laid_out_as(x, dx) if needs_dx else x.new_empty(0)
    return dx, sums if needs_row else sums[:2].clone()


def _fake_backward(
    dy: Tensor,
    d_total: Tensor | None,
    x: Tensor,
    row: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    silu: bool,
    needs_dx: bool,
    needs_row: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return _empty_gradients(x, needs_dx, needs_row)


GROUP_NORM_SILU_BACKWARD = register(
    "group_norm_silu_backward(Tensor dy, Tensor? d_total, Tensor x, Tensor? row, Tensor weight, "
    "Tensor bias, Tensor? scale, Tensor? shift, Tensor mean, Tensor rstd, bool silu, "
    "bool needs_dx, bool needs_row, str backend) -> (Tensor dx, Tensor sums)",
    _backward,
    _fake_backward,
)


# ---- what autograd is told


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, _, _, row, residual, skip, scale, shift, silu, keep_total, backend = inputs
    _, total, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd, *(() if keep_total else (total,)))
    ctx.set_materialize_grads(False)
    summed = (total, None, None) if keep_total else (x, residual, skip)
    ctx.save_for_backward(*summed, row, weight, bias, scale, shift, mean, rstd)
    ctx.own_channels, ctx.kept, ctx.silu, ctx.backend = x.shape[1], keep_total, silu, backend


def _derivative(
    ctx: Any, dy: Tensor | None, d_total: Tensor | None, *_: None
) -> tuple[Tensor | None, ...]:
    x, residual, skip, row, weight, bias, scale, shift, mean, rstd = ctx.saved_tensors
    unsummed = None if ctx.kept else row
    if residual is not None or skip is not None:
        x, unsummed = residual_sum(x, row=row, residual=residual), None
        x = x if skip is None else torch.cat([x, skip], dim=1)
    needs = ctx.needs_input_grad
    needs_dx, needs_row = any(needs[at] for at in (0, 5, 6, 7)), needs[5]
    d, sums = GROUP_NORM_SILU_BACKWARD(
        *(torch.zeros_like(x) if dy is None else dy, d_total),
        *(x, unsummed, weight, bias, scale, shift, mean, rstd),
        *(ctx.silu, needs_dx, needs_row, ctx.backend),
    )
    dz, dz_xhat = sums[0], sums[1]  # [B, C]
    factor = 1 if scale is None else 1 + scale.to(sums.dtype)
    own = slice(ctx.own_channels)
    d_row = sums[-1, :, own]  # if needs_row
    gradients = {
        0: lambda: d[:, own],
        1: lambda: (factor * dz_xhat).sum(0).to(weight.dtype),
        2: lambda: (factor * dz).sum(0).to(bias.dtype),
        5: lambda: (d_row.sum(0) if row.dim() == 1 else d_row).to(row.dtype),
        6: lambda: d[:, own],
        7: lambda: d[:, ctx.own_channels :],
        8: lambda: (dz_xhat * weight + dz * bias).to(scale.dtype),
        9: lambda: dz.to(shift.dtype),
    }
    return tuple(gradients[at]() if needs[at] else None for at in range(len(needs)))


register_derivative(GROUP_NORM_SILU, _derivative, _setup_context)


def _differentiable_once(ctx: Any, *gradients: Tensor) -> None:
    raise RuntimeError(
        "group_norm_silu's kernels are differentiable once; for second derivatives run the network "
        "inside fastddpm.ops.using('reference')"
    )


# Without it torch would take the derivative of the derivative for zero.
register_derivative(GROUP_NORM_SILU_BACKWARD, _differentiable_once, lambda *_: None)
