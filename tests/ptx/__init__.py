"""Compile Triton kernels for GPUs that are not there, read their machine code, execute their PTX.

compile(launch, sm)   what Triton's JIT would build for this call on sm_80, sm_90 or sm_100
execute(launch, sm)   runs that PTX in numpy, strictly, into the launch's own tensors
resources(compiled)   registers, spills, load widths and instruction counts of the machine code
"""

from .execution import Execution, execute, execute_compiled
from .faults import Fault, Unsupported
from .figures import Figures, figures
from .launches import emulated, recorded
from .offline import SMS, Compiled, compile, compile_all
from .sass import Resources, resources

__all__ = [
    "SMS",
    "Compiled",
    "Execution",
    "Fault",
    "Figures",
    "Resources",
    "Unsupported",
    "compile",
    "compile_all",
    "emulated",
    "execute",
    "execute_compiled",
    "figures",
    "recorded",
    "resources",
]
