"""One reverse step from its row of the step table: the specification its fast twins agree with.

    x_0     = x0_from_x x + x0_from_output output,        (x0_from_x (x + x0_from_output output),
              then clamped to [-clip, clip]               if the prediction is "epsilon_in_x")
    mean    = mean_from_x0 x_0 + mean_from_x x            (mean_from_output output, if the output
                                                          is the previous sample's mean)
    x_{t-1} = mean + sigma z                              Ho et al. 2020, algorithm 2

    sigma   = the row's                                   fixed variance
            = exp(v / 2)                                  "learned": v is a log-variance
            = exp((v (max - min) / 2 + (max + min) / 2) / 2)
                                                          "learned_range": Nichol and Dhariwal 2021,
            = 0 where noise_gate is 0                     equation 15, with (v + 1) / 2 for its v

"epsilon_in_x" is "epsilon" where x0_from_output is not the noise's coefficient in x_0 but its share
in x, -√(1-ᾱ): x and that share nearly cancel at high noise, and what is left is multiplied once.

v is the second half of the output's channels; min and max are the row's log_variance_min and
log_variance_max, finite. Where no noise is to be added the table holds sigma = 0 and noise_gate =
0, elsewhere noise_gate = 1.
All in float32, every product and sum rounded by itself in the order written here, so that the twins
give the same bits. Only a learned sigma and its product with z are fused: they are rounded once
where `fused_multiply_add` stands, in every twin. NaN passes through.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastddpm.kernels.common.fused import fused_multiply_add

# The columns of the step table [T, 10], in order.
STEP_COLUMNS = (
    "x0_from_x",
    "x0_from_output",
    "mean_from_x0",
    "mean_from_x",
    "mean_from_output",
    "sigma",
    "log_variance_min",
    "log_variance_max",
    "noise_gate",
    "timestep",
)
PREDICTIONS = ("epsilon", "sample", "v_prediction", "previous_sample")
STEP_PREDICTIONS = (*PREDICTIONS, "epsilon_in_x")
VARIANCES = ("fixed_small", "fixed_large", "learned", "learned_range")
LEARNED_VARIANCES = ("learned", "learned_range")

# 2 exp(r / 2) for |r| <= ln 2, lowest power first: a minimax fit, 0.03 ulp.
TWICE_EXP_HALF = (
    2.0,
    1.0,
    0.24999997019767761,
    0.041666302829980850,
    0.0052085332572460175,
    0.00052304222481325269,
    0.000043189655116293579,
)
LOG_4_E = 0.72134751081466675
# 4e-9 too much, which n = round(v / ln 4) multiplies: half an ulp at |v| = 24, 1.4 at 60.
LN_4 = 1.3862943649291992
# 1.5 2^23 rounds what is added to it to an integer n, which its bits show; less 1, they show n - 1.
ROUND = 12582911.0
ONE_BITS = 0x3F800000
# exp(v / 2) is this at the lowest v that is told apart, and infinity at the highest.
LOWEST = -172.0
LEAST_SIGMA = 4.4737804325289394e-38
HIGHEST = 178.0


def ancestral_step(
    x: Tensor,
    model_output: Tensor,
    noise: Tensor,
    table: Tensor,
    i: Tensor,
    *,
    prediction: str,
    variance: str,
    clip: float | None,
) -> tuple[Tensor, Tensor]:
    """The previous sample and the estimate of x_0, both float32 [B, C, *spatial].

    x, noise: float32 [B, C, *spatial]. model_output: the same, or [B, 2C, *spatial] if the variance
    is learned; any floating dtype. table: float32 [T, 10]. i: int64 [1], read on the device.
    """
    row = dict(zip(STEP_COLUMNS, table.index_select(0, i).unbind(1), strict=True))
    output = model_output.to(torch.float32)
    sigma = row["sigma"]
    if variance in LEARNED_VARIANCES:
        output, values = output.chunk(2, dim=1)
        sigma = learned_sigma(row, values, variance)
    if prediction == "epsilon_in_x":
        x_0 = row["x0_from_x"] * (x + row["x0_from_output"] * output)
    else:
        x_0 = row["x0_from_x"] * x + row["x0_from_output"] * output
    if clip is not None:
        x_0 = x_0.clamp(-clip, clip)
    if prediction == "previous_sample":
        mean = row["mean_from_output"] * output
    else:
        mean = row["mean_from_x0"] * x_0 + row["mean_from_x"] * x
    if variance in LEARNED_VARIANCES:
        return fused_multiply_add(sigma, noise, mean), x_0
    return mean + sigma * noise, x_0


def write_network_input(network_input: Tensor, x_prev: Tensor) -> None:
    """x_{t-1} [B, C, *spatial] in the dtype of network_input [B, C', *spatial]; the rest is 0."""
    channels = x_prev.shape[1]
    network_input[:, :channels].copy_(x_prev)
    network_input[:, channels:].zero_()


def note_nonfinite(first_nonfinite: Tensor, i: Tensor, *tensors: Tensor) -> None:
    """Raise first_nonfinite, int64 [1], to i where a tensor holds NaN or Inf; nothing waits."""
    for tensor in tensors:
        seen = torch.where(torch.isfinite(tensor).all(), -1, i)
        first_nonfinite.copy_(torch.maximum(first_nonfinite, seen))


def learned_sigma(row: dict[str, Tensor], values: Tensor, variance: str) -> Tensor:
    """Standard deviation [B, C, *spatial] from the second half of the output's channels.

    exp(v / 2) - LEAST_SIGMA: 0 from LOWEST down, where a closed gate takes every v. But for that
    difference within 1.25 ulp of the true value for v in [-24, 6], 2 for |v| <= 60, 5 elsewhere.
    """
    v = values
    if variance == "learned_range":
        low, high = row["log_variance_min"], row["log_variance_max"]
        v = fused_multiply_add(values, (high - low) * 0.5, (high + low) * 0.5)
    gate = row["noise_gate"]
    highest = torch.where(gate != 0, torch.full_like(gate, HIGHEST), LOWEST)
    factor, power = _exponential(v.clamp(min=LOWEST).minimum(highest))
    sigma: Tensor = fused_multiply_add(factor, power, -LEAST_SIGMA)
    return sigma


def _exponential(v: Tensor) -> tuple[Tensor, Tensor]:
    """exp(v / 2) as the factors 2 exp(r / 2) and 2^(n - 1), v = n ln 4 + r and |r| <= ln 2.

    In ulp of the product: the polynomial's last step 0.5, those before it and r 0.4, and LN_4's
    share; a power of two rounds nothing. Where v is NaN the first factor is NaN, and the second,
    made of bits, some number.
    """
    shifted = fused_multiply_add(v, LOG_4_E, ROUND).detach()  # n is a constant for the gradient
    r = fused_multiply_add(shifted - ROUND, -LN_4, v)
    factor = torch.full_like(r, TWICE_EXP_HALF[-1])
    for coefficient in reversed(TWICE_EXP_HALF[:-1]):
        factor = fused_multiply_add(r, factor, coefficient)
    bits = (shifted.view(torch.int32) << 23) + ONE_BITS
    return factor, bits.view(torch.float32)
