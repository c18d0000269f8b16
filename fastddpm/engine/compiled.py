"""The compiled engine: the step as one torch.compile graph, called once per step.

    call = torch.compile(step, fullgraph=True, dynamic=False)

On a GPU with mode="max-autotune-no-cudagraphs", but for steps that are fused already: kernels are
chosen by timing, and the graph is ours to capture (cuda_graph.py). The tensors that a step holds
are inputs of the compiled graph, so what is written into them later is seen; those that the step
itself writes are written in place.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from fastddpm.engine.eager import EagerRunner
from fastddpm.engine.plan import CannotPrepare, Plan, Step

CUDA_MODE = "max-autotune-no-cudagraphs"
WARM_UPS = 3


def prepare(step: Step, plan: Plan) -> EagerRunner:
    """Compile ``step`` for ``plan``.

    Raises CannotPrepare for a step that torch.compile cannot take whole, or would compile anew at
    every step. What the step raises by itself goes through.
    """
    # The step's own mistakes are raised by the step, not from the middle of a compiler.
    EagerRunner(step, plan).warm_up(1)
    mode = CUDA_MODE if plan.device.type == "cuda" and not plan.fused else None
    with _explained():
        call: Step = torch.compile(_apart(step), fullgraph=True, dynamic=False, mode=mode)
        runner = EagerRunner(step, plan, call)
        # The second call may meet what the first one left behind (an attribute that was None).
        runner.warm_up(WARM_UPS, last=_settled())
    return runner


def _apart(step: Step) -> Step:
    """The step as a function with a code object of its own: torch.compile keeps what it compiled
    with the code object, eight versions of it at most, and frees it with that."""

    def call(x: Tensor, i: Tensor) -> Tensor:
        return step(x, i)

    code = call.__code__.replace()
    return types.FunctionType(code, call.__globals__, "step", None, call.__closure__)


@contextmanager
def _settled() -> Iterator[None]:
    """Raise CannotPrepare if a step is compiled anew: a thousand would be, too."""
    try:
        with torch.compiler.set_stance("fail_on_recompile"):
            yield
    except RuntimeError as error:
        if "fail_on_recompile" not in str(error):
            raise
        changed = next((line for line in str(error).splitlines() if line.strip()[:1] == "-"), "")
        raise CannotPrepare(
            "torch.compile would compile this step anew every time, because it reads a Python "
            f"value that changes from step to step ({_guard(changed)}): read it from a tensor "
            "through the index i; engine='reference' runs the step as it is"
        ) from error


def _guard(line: str) -> str:
    """The failed condition in a line '- 0/1: condition  # source' of Dynamo's message."""
    return line.partition(": ")[2].partition("#")[0].strip() or "torch did not say which"


@contextmanager
def _explained() -> Iterator[None]:
    """Errors of the compiler as CannotPrepare with what a user can act on."""
    # Late, because Dynamo takes a second to import and only this engine needs it.
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

    try:
        yield
    except (TorchDynamoException, FailOnRecompileLimitHit) as error:
        raise CannotPrepare(
            f"torch.compile cannot take this step whole: {_summary(str(error))}; "
            "engine='reference' runs it as it is"
        ) from error


def _summary(message: str) -> str:
    """Of a message of Dynamo or Inductor: what happened, explanation, first hint and the place in
    the user's code."""
    lines = [line.strip() for line in message.splitlines()] or ["no message"]
    # "backend='inductor' raised:" goes on in the next line.
    happened = " ".join(lines[: 2 if lines[0].endswith(":") else 1])
    explanation, hint, place = (
        [line for line in lines if line.startswith(key)]
        for key in ("Explanation: ", "Hint: ", "File ")
    )
    return " | ".join([happened, *explanation[:1], *hint[:1], *place[-1:]])
