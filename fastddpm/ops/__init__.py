"""The functional API: checks, choice of backend, one file per op."""

from fastddpm.ops.ancestral_step import Draw, ancestral_step, ancestral_step_
from fastddpm.ops.backends import using
from fastddpm.ops.conv3x3 import conv3x3
from fastddpm.ops.group_norm_silu import group_norm_silu
from fastddpm.ops.host_call import host_call_
from fastddpm.ops.library import cpu_library_status
from fastddpm.ops.normal import normal
from fastddpm.ops.q_sample import q_sample
from fastddpm.ops.recording import is_recording, recording
from fastddpm.ops.residual_sum import resampled_sum, residual_sum
from fastddpm.ops.self_attention import Linear, self_attention
from fastddpm.ops.table_row import table_row

__all__ = [
    "Draw",
    "Linear",
    "ancestral_step",
    "ancestral_step_",
    "conv3x3",
    "cpu_library_status",
    "group_norm_silu",
    "host_call_",
    "is_recording",
    "normal",
    "q_sample",
    "recording",
    "resampled_sum",
    "residual_sum",
    "self_attention",
    "table_row",
    "using",
]
