"""The functional API: checks, choice of backend, one file per op."""

from fastddpm.ops.group_norm_silu import group_norm_silu

__all__ = ["group_norm_silu"]
