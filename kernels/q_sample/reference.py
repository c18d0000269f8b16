"""The forward process in one step: the specification its fast twins agree with.

    x_t = sqrt(alphas_cumprod_t) x_0 + sqrt(1 - alphas_cumprod_t) noise      Ho et al. 2020, eq. 4

In float32; both products and their sum are rounded by themselves.
"""

from __future__ import annotations

from torch import Tensor

# The columns of the table [T, 2], in order.
FORWARD_COLUMNS = ("sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod")


def q_sample(x_0: Tensor, t: Tensor, table: Tensor, noise: Tensor) -> Tensor:
    """x_t, float32 [B, C, *spatial].

    x_0, noise: float32 [B, C, *spatial]. t: int64 [B], rows of table float32 [T, 2].
    """
    rows = table.index_select(0, t).reshape(len(t), 2, *[1] * (x_0.ndim - 1))
    signal, spread = rows.unbind(1)
    return signal * x_0 + spread * noise
