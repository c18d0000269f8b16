"""The rest of a step: the reverse step itself, and what is copied out."""

from __future__ import annotations

import math

import torch

from fastddpm.engine.cpu.emitter import Emitter
from fastddpm.engine.cpu.rules.registry import rule
from fastddpm.engine.cpu.values import Constant, Index, InOrder, Value
from fastddpm.engine.plan import CannotPrepare
from fastddpm.ops.ancestral_step import ANCESTRAL_STEP
from fastddpm.ops.host_call import HOST_CALL, recorded_function
from fastddpm.ops.program_abi import Prediction, Step, Variance

_VARIANCES = {"learned": Variance.LEARNED, "learned_range": Variance.LEARNED_RANGE}


@rule(ANCESTRAL_STEP)
def ancestral_step(
    emit: Emitter,
    x: InOrder | Constant,
    model_output: Value,
    noise: Constant | None,
    seed: Constant | None,
    indices: Constant | None,
    timesteps: Constant | None,
    table: Constant,
    i: Value,
    prediction: str,
    variance: str,
    clip: float | None,
    x_0: Constant | None,
    network_input: Constant | None,
    first_nonfinite: Constant | None,
    backend: str,
) -> None:
    if network_input is not None or not isinstance(i, Index):
        raise CannotPrepare("the reverse step reads the step's own index and writes no input")
    if not isinstance(x, InOrder | Constant):
        raise CannotPrepare("the reverse step moves the step's own state, or a tensor it holds")
    if len(table.tensor) < emit.num_steps:
        raise CannotPrepare("the step table has too few rows")
    output = emit.in_order(model_output)

    def whole(given: Constant | None) -> int | None:
        return None if given is None else emit.address(given.tensor, torch.int64)

    emit.code.append(
        Step(
            x=emit.address(x.tensor),
            x_0=None if x_0 is None else emit.address(x_0.tensor),
            model_output=output,
            noise=None if noise is None else emit.address(noise.tensor),
            table=emit.address(table.tensor),
            batch=len(x.tensor),
            elements=math.prod(x.tensor.shape[1:]),
            prediction=Prediction.of(prediction),
            variance=_VARIANCES.get(variance, Variance.FIXED),
            clip=math.inf if clip is None else clip,
            seed=whole(seed),
            indices=whole(indices),
            timesteps=whole(timesteps),
            first_nonfinite=whole(first_nonfinite),
        )
    )


@rule(HOST_CALL)
def host_call(emit: Emitter, tensors: list[Value], number: int) -> None:
    held = []
    for value in tensors:
        if not isinstance(value, InOrder | Constant):
            raise CannotPrepare("functions get the step's own state, and tensors it holds")
        emit.address(value.tensor, value.tensor.dtype)
        held.append(value.tensor)
    emit.call(recorded_function(number), held)


@rule(torch.ops.aten.copy_.default)
def copy(emit: Emitter, to: Constant, value: Value, non_blocking: bool = False) -> Constant:
    if not isinstance(to, Constant):
        raise CannotPrepare("only into tensors that the step holds is copied")
    emit.write_in_order(value, emit.address(to.tensor))
    return to
