"""GroupNorm + SiLU with the fusions a U-Net needs.

Specification: kernels/group_norm_silu/reference.py.
"""

from __future__ import annotations

from torch import Tensor

from fastddpm.kernels.group_norm_silu import reference


def group_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float,
    *,
    row: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str | None = "silu",
) -> Tensor:
    """act(GroupNorm(x + row)·(1 + scale) + shift).

    Args:
        x: [B, C, *spatial], floating.
        weight, bias: [C].
        num_groups: G, a divisor of C.
        eps: added to the variance.
        row: [B, C], added to x before the normalisation; None: nothing.
        scale, shift: [B, C], both or neither: FiLM after the normalisation.
        activation: "silu" or None.

    Returns:
        [B, C, *spatial] in the dtype of x.

    Raises:
        ValueError: for shapes that do not agree, or an unknown activation.
    """
    batch_channels = tuple(x.shape[:2])
    if x.dim() < 2 or x.shape[1] % num_groups:
        raise ValueError(f"C must be a multiple of num_groups={num_groups}, got x {list(x.shape)}")
    if (scale is None) != (shift is None):
        raise ValueError("scale and shift belong together: give both or neither")
    for name, rows in (("row", row), ("scale", scale), ("shift", shift)):
        if rows is not None and tuple(rows.shape) != batch_channels:
            raise ValueError(f"{name} must be {list(batch_channels)}, got {list(rows.shape)}")
    if activation not in ("silu", None):
        raise ValueError(f"activation must be 'silu' or None, got {activation!r}")
    y: Tensor = reference.group_norm_silu(
        x,
        weight,
        bias,
        num_groups,
        eps,
        row=row,
        scale=scale,
        shift=shift,
        activation=activation,
    )
    return y
