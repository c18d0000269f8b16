"""One reverse step from its row of the step table: the specification its fast twins agree with.

    x_0     = x0_from_x x + x0_from_output output,        (x0_from_x (x + x0_from_output output),
              then clamped to [-clip, clip]               if the prediction is "epsilon_in_x")
    mean    = mean_from_x0 x_0 + mean_from_x x            (mean_from_output output, if the output
                                                          is the previous sample's mean)
    x_{t-1} = mean + sigma z                              Ho et al. 2020, algorithm 2

    sigma   = the row's                                   fixed variance
            = noise_gate exp(v / 2)                       "learned": v is a log-variance
            = noise_gate exp((f max + (1 - f) min) / 2)   "learned_range", f = (v + 1) / 2:
                                                          Nichol and Dhariwal 2021, equation 15

"epsilon_in_x" is "epsilon" where x0_from_output is not the noise's coefficient in x_0 but its share
in x, -√(1-ᾱ): x and that share nearly cancel at high noise, and what is left is multiplied once.

v is the second half of the output's channels; min and max are the row's log_variance_min and
log_variance_max. Where no noise is to be added the table holds sigma = 0 and noise_gate = 0.
All in float32, every product and sum rounded by itself in the order written here, so that the twins
give the same bits (with a learned variance up to the exponential's last ones). NaN passes through.
"""

from __future__ import annotations

import torch
from torch import Tensor

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
        sigma = _learned_sigma(row, values, variance)
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


def _learned_sigma(row: dict[str, Tensor], values: Tensor, variance: str) -> Tensor:
    """Standard deviation [B, C, *spatial] from the second half of the output's channels."""
    log_variance = values
    if variance == "learned_range":
        fraction = (values + 1) * 0.5
        log_variance = fraction * row["log_variance_max"] + (1 - fraction) * row["log_variance_min"]
    return row["noise_gate"] * (log_variance * 0.5).exp()
