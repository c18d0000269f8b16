"""PTX written by hand, for testing the executor itself.

Before the body, %rd0, %rd1, ... hold the addresses of the tensors, %r0 the thread, %r1 the program
and %rd16 the thread as 64 bits. Free to use: the other %r, %rd, %rs, %f and %p below 32.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch

from fastddpm.kernels.common.launch import Launch

from .execution import Execution, execute_compiled
from .offline import Compiled
from .scalars import Array

MODULE = """
.version 8.7
.target sm_90a
.address_size 64
.extern .shared .align 16 .b8 global_smem[];
.visible .entry handwritten({parameters})
.reqntid {block}
{{
	.reg .pred %p<32>;
	.reg .b16 %rs<32>;
	.reg .b32 %r<32>;
	.reg .b64 %rd<32>;
	mov.u32 %r0, %tid.x;
	mov.u32 %r1, %ctaid.x;
	cvt.u64.u32 %rd16, %r0;
{body}
	ret;
}}
"""


class _Handwritten:
    __name__ = "handwritten"


def run_ptx(
    body: str,
    tensors: Mapping[str, torch.Tensor],
    *,
    writes: Collection[str] = (),
    in_place: Collection[str] = (),
    partial: Collection[str] = (),
    grid: int = 1,
    block: int = 32,
    shared: int = 0,
) -> Execution:
    """Run a body of PTX with these tensors as its parameters."""
    names = tuple(tensors)
    loads = "".join(f"\tld.param.b64 %rd{i}, [p{i}];\n" for i in range(len(names)))
    parameters = ", ".join(f".param .u64 p{i}" for i in range(len(names)))
    ptx = MODULE.format(parameters=parameters, block=block, body=loads + body)
    compiled = Compiled("handwritten", 90, ptx, b"", shared, block // 32, names)
    launch = Launch(_Handwritten(), (grid,), dict(tensors), {}, block // 32, writes=tuple(writes))
    return execute_compiled(compiled, launch, in_place=in_place, partial=partial)


# Lanes of the programs of a single instruction.
LANES = 256
TORCH = {16: torch.int16, 32: torch.int32, 64: torch.int64}
REGISTER = {16: "%rs", 32: "%r", 64: "%rd"}


def apply(instruction: str, sizes: Sequence[int], *operands: Array, shared: int = 0) -> Array:
    """Bits of ``instruction``'s result, {d}, for the operands' bits {0}, {1}, ... in each lane.

    sizes: bits of the result, then of each operand.
    """
    out = torch.empty(LANES, dtype=TORCH[sizes[0]])
    tensors = {"out": out}
    body, names = "", {"d": f"{REGISTER[sizes[0]]}20"}
    for i, (size, bits) in enumerate(zip(sizes[1:], operands, strict=True)):
        tensors[f"x{i}"] = torch.from_numpy(bits.astype(f"uint{size}").view(f"int{size}"))
        names[str(i)] = f"{REGISTER[size]}{21 + i}"
        body += f"mad.lo.u64 %rd17, %rd16, {size // 8}, %rd{1 + i};\n"
        body += f"ld.global.b{size} {names[str(i)]}, [%rd17];\n"
    for key, name in names.items():
        instruction = instruction.replace(f"{{{key}}}", name)
    body += f"{instruction};\n mad.lo.u64 %rd17, %rd16, {sizes[0] // 8}, %rd0;\n"
    body += f"st.global.b{sizes[0]} [%rd17], {names['d']};"
    run_ptx(body, tensors, writes=["out"], block=LANES, shared=shared)
    return out.numpy().view(f"uint{sizes[0]}")


def random_bits(size: int, seed: int) -> Array:
    """Any bits in each lane, and the integers whose handling goes wrong most easily."""
    generator = np.random.default_rng(seed)
    bits = generator.integers(0, 1 << size, LANES, dtype=np.uint64)
    corners = [0, 1, 2, (1 << size) - 1, 1 << (size - 1), (1 << (size - 1)) - 1, size, size - 1]
    bits[: len(corners)] = corners
    generator.shuffle(bits)
    return bits.astype(f"uint{size}")
