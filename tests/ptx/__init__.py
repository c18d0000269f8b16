"""Compile Triton kernels for GPUs that are not there, read their machine code, execute their PTX.

compile(launch, sm)   what Triton's JIT would build for this call on sm_80, sm_90 or sm_100
execute(launch, sm)   runs that PTX in numpy, strictly, into the launch's own tensors
resources(compiled)   registers, spills, load widths and instruction counts of the machine code
"""

from .execution import Execution, execute, execute_compiled
from .faults import Fault, Unsupported
from .offline import SMS, Compiled, compile, compile_all
from .sass import Resources, resources

__all__ = [
    "SMS",
    "Compiled",
    "Execution",
    "Fault",
    "Resources",
    "Unsupported",
    "compile",
    "compile_all",
    "execute",
    "execute_compiled",
    "resources",
]
