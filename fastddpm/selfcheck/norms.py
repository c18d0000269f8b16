"""group_norm_silu and residual_sum: errors against float64, at most twice torch's own."""

KERNELS = {}
