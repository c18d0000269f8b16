"""NaN or Inf in a chain, found on the device and reported with its timestep.

The step itself notes the first index at which something was not finite (``first_nonfinite`` of
``ops.ancestral_step_``), so the loop never waits; the host looks every so often.
"""

from __future__ import annotations

from torch import Tensor

# The value that stands for "none so far": step indices count down from T - 1.
NONE_YET = -1


def check_finite(first_nonfinite: Tensor, timesteps: Tensor) -> None:
    """Raise FloatingPointError naming the timestep if anything was not finite; waits for the
    device.

    first_nonfinite: int64 [1], the index of the first bad step or ``NONE_YET``.
    timesteps:       int64 [T], the original timestep of each step index.
    """
    first = int(first_nonfinite.item())
    if first != NONE_YET:
        raise FloatingPointError(
            f"NaN or Inf in the chain at timestep {int(timesteps[first])} "
            f"(step index {first}); a half-precision network may overflow where a float32 one "
            "does not, otherwise suspect the weights"
        )
