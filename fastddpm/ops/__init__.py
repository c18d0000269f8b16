"""The functional API: checks, choice of backend, one file per op."""

from fastddpm.ops.ancestral_step import Draw, ancestral_step
from fastddpm.ops.group_norm_silu import group_norm_silu
from fastddpm.ops.library import cpu_library_status
from fastddpm.ops.normal import normal

__all__ = ["Draw", "ancestral_step", "cpu_library_status", "group_norm_silu", "normal"]
