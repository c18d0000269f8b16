"""The reverse step as an instruction: bit for bit the op that the reference specifies."""

from __future__ import annotations

import math

import pytest
import torch
from cpu_instructions import as_buffer, run
from op_backends import needs_library, same_bits
from torch import Tensor

from fastddpm.kernels.ancestral_step.call import StepCall
from fastddpm.kernels.ancestral_step.cases import CASES, Case
from fastddpm.ops.ancestral_step import step_in_place
from fastddpm.ops.program_abi import Prediction, Step, Variance

pytestmark = needs_library
SOME = [case for case in CASES if case.network is None and math.prod(case.shape) > 0]
VARIANCES = {"learned": Variance.LEARNED, "learned_range": Variance.LEARNED_RANGE}


def address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def take(call: StepCall, threads: int) -> StepCall:
    """Run the instruction on the call's own tensors, but with a border around x and x_0."""
    x, x_0 = as_buffer(call.x), None if call.x_0 is None else as_buffer(call.x_0)
    arguments = Step(
        x=x.address,
        x_0=None if x_0 is None else x_0.address,
        model_output=address(call.model_output),
        noise=address(call.noise),
        table=address(call.table),
        batch=len(call.x),
        elements=math.prod(call.x.shape[1:]),
        prediction=Prediction.of(call.prediction),
        variance=VARIANCES.get(call.variance, Variance.FIXED),
        clip=math.inf if call.clip is None else call.clip,
        seed=address(call.seed),
        indices=address(call.indices),
        timesteps=address(call.timesteps),
        first_nonfinite=address(call.first_nonfinite),
    )
    run(arguments, threads=threads, step=int(call.i))
    x.check_border()
    call.x.copy_(x.numbers.view(call.x.shape))
    if x_0 is not None:
        x_0.check_border()
        call.x_0.copy_(x_0.numbers.view(call.x.shape))
    return call


@pytest.mark.parametrize("threads", [1, 2, 3, 40])
@pytest.mark.parametrize("i", [0, 2])
@pytest.mark.parametrize("case", SOME, ids=lambda case: case.name)
def test_is_the_op(case: Case, i: int, threads: int, isa: str) -> None:
    ours, expected = take(case.call(i), threads), case.call(i)
    step_in_place(expected, "cpu")
    assert same_bits(ours.x, expected.x)
    assert torch.equal(ours.first_nonfinite, expected.first_nonfinite)
    if expected.x_0 is not None:
        assert same_bits(ours.x_0, expected.x_0)


@pytest.mark.parametrize("case", [c for c in SOME if c.draws], ids=lambda case: case.name)
def test_a_sample_depends_on_its_index_alone(case: Case, isa: str) -> None:
    whole, call = take(case.call(1), 2), case.call(1)
    for sample in range(case.shape[0]):
        part = slice(sample, sample + 1)
        alone = call._replace(
            x=call.x[part].clone(),
            x_0=None,
            model_output=call.model_output[part].contiguous(),
            indices=call.indices[part].clone(),
        )
        assert same_bits(take(alone, 1).x[0], whole.x[sample])


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["x", "model_output", "last half", "after overflow"])
def test_the_first_step_that_is_not_finite_is_kept(
    where: str, value: float, threads: int, isa: str
) -> None:
    case = Case("watched", (2, 3, 9, 7), variance="learned_range")
    call = case.call(1)
    if where == "last half":
        call.model_output[1, 5, 8, 6] = value
    elif where == "after overflow":
        call.x[0, 1, 2, 3] = math.copysign(3e38, value)
        call.table[1, 3] = 4  # mean_from_x
    else:
        call.tensors[where][0, 1, 2, 3] = value
    take(call, threads)
    assert call.first_nonfinite.item() == 1
    later = case.call(0)._replace(x=call.x, first_nonfinite=call.first_nonfinite)
    assert take(later, threads).first_nonfinite.item() == 1


def test_an_infinite_output_behind_the_clip_is_seen(isa: str) -> None:
    call = Case("clipped", (1, 1, 4, 4)).call(1)
    call.model_output[0, 0, 1, 1] = math.inf
    take(call, 2)
    assert call.x.isfinite().all() and call.first_nonfinite.item() == 1


def test_nobody_needs_to_ask_for_the_first_step(isa: str) -> None:
    case = Case("unwatched", (1, 1, 4, 4), wants_x_0=False)
    watched = take(case.call(1), 1)
    assert same_bits(take(case.call(1)._replace(first_nonfinite=None), 1).x, watched.x)
