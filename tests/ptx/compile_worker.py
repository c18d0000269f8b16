"""A process that compiles Triton kernels for a GPU that is not there.

It reads pickled requests from its standard input and answers each on its standard output. It runs
without TRITON_INTERPRET, under which @triton.jit functions cannot be compiled, and asks Triton's
own binder for the specialisation, so that the code is that of a real launch with such arguments:
types from the tensors, divisibility by 16 of pointers and integers, ones and None folded in.
Triton's on-disk cache makes a second compilation of the same source free.
"""

from __future__ import annotations

import importlib
import os
import pickle
import sys
import traceback
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TensorArgument:
    """What Triton's specialisation sees of a tensor: its dtype and its address."""

    dtype: Any
    address: int

    def data_ptr(self) -> int:
        return self.address

    def ptr_range(self) -> int:
        """AMD's question; the CUDA back end does not ask it."""
        return 0


@dataclass(frozen=True)
class Request:
    """One kernel with one set of arguments, for one GPU."""

    module: str
    kernel: str
    arguments: dict[str, Any]
    num_warps: int
    num_stages: int
    exact: bool
    sm: int


@dataclass(frozen=True)
class Compiled:
    """A compiled kernel: its text, its binary and how to launch it.

    parameters: the names of the arguments that are passed at run time, in order; the others are
                constants of the code.
    """

    name: str
    sm: int
    ptx: str
    cubin: bytes
    shared: int
    num_warps: int
    parameters: tuple[str, ...]


def compile_request(request: Request) -> Compiled:
    """Compile as ``kernel[grid](**arguments)`` would on a GPU of this compute capability."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile, make_backend
    from triton.runtime.jit import create_function_from_signature

    kernel = getattr(importlib.import_module(request.module), request.kernel)
    target = GPUTarget("cuda", request.sm, 32)
    backend = make_backend(target)
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    given = {
        "num_warps": request.num_warps,
        "num_stages": request.num_stages,
        "enable_fp_fusion": not request.exact,
    }
    bound, specialization, given = bind(**request.arguments, **given)
    options, signature, constants, attributes = kernel._pack_args(
        backend, given, bound, specialization, given
    )
    source = ASTSource(kernel, signature, constants, attributes)
    built = compile(source, target=target, options=options.__dict__)
    return Compiled(
        name=request.kernel,
        sm=request.sm,
        ptx=built.asm["ptx"],
        cubin=built.asm["cubin"],
        shared=built.metadata.shared,
        num_warps=built.metadata.num_warps,
        parameters=tuple(name for name, kind in signature.items() if kind != "constexpr"),
    )


def main() -> None:
    """Answer requests until the input ends; the answer to a failed one is its traceback."""
    answers = os.fdopen(os.dup(1), "wb")
    # What Triton prints (ptxas logs) goes to standard error, not between the answers.
    os.dup2(2, 1)
    while True:
        try:
            request = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer: Compiled | str = compile_request(request)
        except Exception:  # noqa: BLE001  the caller raises it again
            answer = traceback.format_exc()
        pickle.dump(answer, answers)
        answers.flush()
