"""GroupNorm + SiLU with the fusions a U-Net needs.

Specification: kernels/group_norm_silu/reference.py. The registered op and its derivative:
group_norm_silu_op.py.
"""

from __future__ import annotations

from torch import Tensor

from fastddpm.kernels.group_norm_silu import reference
from fastddpm.ops.backends import asked
from fastddpm.ops.group_norm_silu_op import GROUP_NORM_SILU


def group_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float,
    *,
    row: Tensor | None = None,
    residual: Tensor | None = None,
    skip: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str | None = "silu",
    keep_total: bool = True,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """y = act(GroupNorm(total)·(1 + scale) + shift) and total = cat(x + row + residual, skip).

    Args:
        x: [B, C1, *spatial], floating.
        weight, bias: [C], C = C1 + C2.
        num_groups: G, a divisor of C.
        eps: added to the variance.
        row: [B, C1], or [C1] for all samples alike, added to x; None: nothing.
        residual: like x, added to it; None: nothing.
        skip: [B, C2, *spatial], joined to the sum by channels; None: C2 = 0.
        scale, shift: [B, C], both or neither: FiLM after the normalisation.
        activation: "silu" or None.
        keep_total: False if total is not wanted: the kernels then do not write it.
        backend: "auto", "reference" or "triton". On a CPU "auto" and "reference" are plain torch.

    Returns:
        (y, total), both [B, C, *spatial] in the dtype of x. Where there is nothing to add and
        nothing to join, total is x itself; where it is not kept, an empty tensor.

    Raises:
        ValueError: for shapes that do not agree, an unknown activation, or a backend asked for by
            name that cannot run this call.
    """
    _check(x, weight, bias, num_groups, row, residual, skip, scale, shift, activation)
    backend = asked(backend)
    nothing_added = row is None and residual is None and skip is None
    if x.device.type == "cpu" and backend in ("auto", "reference"):
        # Plain torch: differentiable twice, and open to the compiler.
        y, total = reference.group_norm_silu(
            *(x, weight, bias, num_groups, eps),
            row=row,
            residual=residual,
            skip=skip,
            scale=scale,
            shift=shift,
            activation=activation,
        )
    else:
        y, total, _, _ = GROUP_NORM_SILU(
            *(x, weight, bias, num_groups, eps, row, residual, skip, scale, shift),
            activation == "silu",
            keep_total and not nothing_added,
            backend,
        )
    if not keep_total:
        return y, x.new_empty(0)
    return y, x if nothing_added else total


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    row: Tensor | None,
    residual: Tensor | None,
    skip: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str | None,
) -> None:
    """Raise ValueError unless the arguments are as the docstring of `group_norm_silu` says."""
    if x.dim() < 2:
        raise ValueError(f"x must be [B, C, *spatial], got {list(x.shape)}")
    batch, own = x.shape[:2]
    joined = 0 if skip is None else skip.shape[1]
    channels = own + joined
    if channels % num_groups:
        raise ValueError(f"C must be a multiple of num_groups={num_groups}, got {channels}")
    if (scale is None) != (shift is None):
        raise ValueError("scale and shift belong together: give both or neither")
    expected = {
        "weight": (weight, (channels,)),
        "bias": (bias, (channels,)),
        "row": (row, (own,) if row is not None and row.dim() == 1 else (batch, own)),
        "residual": (residual, tuple(x.shape)),
        "skip": (skip, (batch, joined, *x.shape[2:])),
        "scale": (scale, (batch, channels)),
        "shift": (shift, (batch, channels)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must be {list(shape)}, got {list(tensor.shape)}")
    if activation not in ("silu", None):
        raise ValueError(f"activation must be 'silu' or None, got {activation!r}")
