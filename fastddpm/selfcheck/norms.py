"""group_norm_silu and residual_sum: errors against float64, at most twice torch's own."""

from collections.abc import Callable

import torch

from fastddpm.selfcheck.outcome import Outcome

KERNELS: dict[str, Callable[[str, torch.device], Outcome]] = {}
