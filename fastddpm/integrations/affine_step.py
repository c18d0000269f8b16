"""AffineStep: the rows of step_rows.py applied to images, in one pass over memory where one can.

    x_0     = bound(x0_from_x x + x0_from_output output)      (or x0_from_x (x + ...), for ε)
    x_prev  = mean_from_x0 x_0 + mean_from_x x + mean_from_output output + sigma noise

ops.ancestral_step is that step without the third term of the mean, float32 and with a clamp for a
bound. The third term takes the place of the noise where there is none. All else runs in torch:
other dtypes, a threshold, a variance that the network gives as it is, gradients. On plain CPU
tensors the same kernel is called with its table bound (ops.bound_step).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from fastddpm import ops
from fastddpm.kernels.ancestral_step.reference import STEP_COLUMNS
from fastddpm.ops.bound_step import CPU, BoundStep, plain, transformed
from fastddpm.sampler.threshold import Threshold

# What the second half of an output with 2C channels says; "given" is σ² itself.
FIXED, LEARNED, LEARNED_RANGE, GIVEN = "fixed_small", "learned", "learned_range", "given"
_OUTPUT = STEP_COLUMNS.index("mean_from_output")
_SIGMA = STEP_COLUMNS.index("sigma")


@dataclass(frozen=True, eq=False)
class AffineStep:
    """One reverse step, for every timestep.

    rows: float64 [T, 10], columns STEP_COLUMNS. prediction: how they give x_0, as ops'.
    clip: bound of |x_0|; None for none. threshold: another bound, instead.
    variance: FIXED (the rows' sigma), LEARNED, LEARNED_RANGE or GIVEN.
    """

    rows: Tensor
    prediction: str
    clip: float | None = None
    threshold: Threshold | None = None
    variance: str = FIXED
    # Copies by what they are, device and dtype.
    _copies: dict[tuple[str, torch.device, torch.dtype], Tensor] = field(
        default_factory=dict, init=False, repr=False
    )
    # By table and variance.
    _steps: dict[tuple[str, str], BoundStep] = field(default_factory=dict, init=False, repr=False)

    def __call__(
        self, x: Tensor, output: Tensor, t: int | Tensor, noise: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """x_prev and x_0, in the dtype that x and output promote to.

        x: [B, C, *spatial]. output: the same, or [B, 2C, *spatial] if the variance is learned. t: a
        row, or int64 of one element on x's device, read there. noise: what broadcasts to x's shape,
        or None where the row has none; then an output of C channels will do.
        """
        doubled = self.variance != FIXED and output.shape[1:2] == (2 * x.shape[1],)
        if noise is not None and self.variance != FIXED and not doubled:
            raise ValueError(
                f"model_output: expected {2 * x.shape[1]} channels, the variance among them, "
                f"got {list(output.shape)}"
            )
        variance = self.variance if doubled else FIXED
        if isinstance(t, int) and self._binds(x, output, noise, variance):
            return self._bound(x, output, t, noise, variance)
        i = self.index(x.device)[t : t + 1] if isinstance(t, int) else t.reshape(1)
        if self._fuses(x, output, noise, variance):
            return self._fused(x, output, i, noise, variance)
        return self._plain(x, output, i, noise, variance)

    def index(self, device: torch.device) -> Tensor:
        """0 to T-1, int64, where a row's number can be read."""
        return self._copy("index", device, torch.int64)

    def _fuses(self, x: Tensor, output: Tensor, noise: Tensor | None, variance: str) -> bool:
        """Whether ops.ancestral_step computes this."""
        grad = torch.is_grad_enabled() and (x.requires_grad or output.requires_grad)
        return (
            self._is_kernels(x, output, noise, variance)
            and x.dtype == torch.float32
            and output.dtype in (torch.float32, torch.bfloat16, torch.float16)
            and output.device == x.device
            and (noise is None or noise.device == x.device)
            and not grad
            and not transformed()
        )

    def _binds(self, x: Tensor, output: Tensor, noise: Tensor | None, variance: str) -> bool:
        """Whether one foreign call computes this."""
        return (
            (plain(x, output) if noise is None else plain(x, output, noise))
            and self._is_kernels(x, output, noise, variance)
            and (self.clip is None or self.clip > 0)
            and BoundStep.available()
        )

    def _is_kernels(self, x: Tensor, output: Tensor, noise: Tensor | None, variance: str) -> bool:
        """Whether shapes and settings are the kernel's."""
        shape = x.shape
        whole = shape if variance == FIXED else (shape[0], 2 * shape[1], *shape[2:])
        return (
            self.threshold is None
            and variance != GIVEN
            and x.ndim >= 2
            and output.shape == whole
            # A caller's own noise may have to be broadcast.
            and (noise is None or noise.shape == shape)
        )

    def _bound(
        self, x: Tensor, output: Tensor, t: int, noise: Tensor | None, variance: str
    ) -> tuple[Tensor, Tensor]:
        table, last = self._last(x, output, noise)
        x_prev, x_0 = self._step(table, variance)(x, output, last, t)
        if noise is not None and self._by_output:
            x_prev.add_(output, alpha=float(self.rows[t, _OUTPUT]))
        return x_prev, x_0

    def _step(self, table: str, variance: str) -> BoundStep:
        key = (table, variance)
        if key not in self._steps:
            own = self._copy(table, CPU, torch.float32)
            self._steps[key] = BoundStep(own, self.clip, variance, self.prediction)
        return self._steps[key]

    def _last(self, x: Tensor, output: Tensor, noise: Tensor | None) -> tuple[str, Tensor]:
        """What is multiplied by sigma, and the table that has it: where a row has no noise it is
        the output, or nothing."""
        if noise is not None:
            return "rows", noise
        return ("output", output) if self._by_output else ("rows", x)

    def _fused(
        self, x: Tensor, output: Tensor, i: Tensor, noise: Tensor | None, variance: str
    ) -> tuple[Tensor, Tensor]:
        table, last = self._last(x, output, noise)
        x_prev, x_0 = ops.ancestral_step(
            *(x, output, last.float(), self._copy(table, x.device, torch.float32), i),
            prediction=self.prediction,
            variance=variance,
            clip=self.clip,
        )
        if noise is not None and self._by_output:
            row = self._copy("rows", x.device, torch.float32).index_select(0, i)
            x_prev.addcmul_(row[0, _OUTPUT], output.float())
        return x_prev, x_0

    def _plain(
        self, x: Tensor, output: Tensor, i: Tensor, noise: Tensor | None, variance: str
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(x.dtype, output.dtype)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        values = self._copy("rows", x.device, wide).index_select(0, i).unbind(1)
        row = dict(zip(STEP_COLUMNS, values, strict=True))
        x, output = x.to(wide), output.to(wide)
        second = output
        if variance != FIXED:
            output, second = output.chunk(2, dim=1)
        if self.prediction == "epsilon_in_x":
            x_0 = row["x0_from_x"] * (x + row["x0_from_output"] * output)
        else:
            x_0 = row["x0_from_x"] * x + row["x0_from_output"] * output
        if self.threshold is not None:
            x_0 = self.threshold(x_0)
        elif self.clip is not None:
            x_0 = x_0.clamp(-self.clip, self.clip)
        x_prev = row["mean_from_x0"] * x_0 + row["mean_from_x"] * x
        if self._by_output:
            x_prev = x_prev + row["mean_from_output"] * output
        if noise is not None:
            x_prev = x_prev + _sigma(row, second, variance) * noise.to(wide)
        return x_prev.to(dtype), x_0.to(dtype)

    @cached_property
    def _by_output(self) -> bool:
        """Whether the mean has its third term."""
        # Rows of timesteps that a chain does not visit are NaN.
        return bool(self.rows[:, _OUTPUT].nan_to_num().any())

    def _copy(self, name: str, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The rows, or the rows with the output in the noise's place, or their numbers."""
        key = (name, device, dtype)
        if key not in self._copies:
            # Made in inference mode they could not be used where gradients are.
            with torch.inference_mode(False):
                made = self.rows
                if name == "index":
                    made = torch.arange(len(self.rows))
                elif name == "output":
                    made = self.rows.clone()
                    made[:, _SIGMA] = made[:, _OUTPUT]
                self._copies[key] = made.to(device, dtype)
        return self._copies[key]


def _sigma(row: dict[str, Tensor], second: Tensor, variance: str) -> Tensor:
    """The noise's standard deviation: [1], or of second's shape."""
    if variance == FIXED:
        return row["sigma"]
    if variance == GIVEN:
        return row["noise_gate"] * second**0.5
    log_variance = second
    if variance == LEARNED_RANGE:
        fraction = (second + 1) / 2
        low, high = row["log_variance_min"], row["log_variance_max"]
        log_variance = fraction * high + (1 - fraction) * low
    return row["noise_gate"] * (0.5 * log_variance).exp()
