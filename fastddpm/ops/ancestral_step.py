"""One reverse step of the chain. Specification: kernels/ancestral_step/reference.py.

x_{t-1} = mean(x_t, x_0(x_t, output)) + sigma z
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastddpm import noise as counter_noise
from fastddpm.kernels.ancestral_step import reference
from fastddpm.kernels.ancestral_step.call import StepCall
from fastddpm.noise import Purpose
from fastddpm.ops.backends import choose_backend, triton_unsupported
from fastddpm.ops.library import cpu_library, unsupported_tensors
from fastddpm.ops.program_abi import Prediction
from fastddpm.ops.registry import register

# Codes of fastddpm.h.
VARIANCE_CODES = {"fixed_small": 0, "fixed_large": 0, "learned": 1, "learned_range": 2}


@dataclass(frozen=True)
class Draw:
    """Noise that the step draws by itself: Purpose.REVERSE of noise.py, never stored.

    seed: int64 [1], `noise.seed_tensor`. indices: int64 [B], the sample indices. timesteps: int64
    [T], the original timestep of each row of the step table. All are read where they lie.
    """

    seed: Tensor
    indices: Tensor
    timesteps: Tensor

    @classmethod
    def of(cls, seed: int, indices: Tensor, timesteps: Tensor) -> Draw:
        """The draw of a seed in [0, 2^64), on the device of ``indices``."""
        return cls(counter_noise.seed_tensor(seed, indices.device), indices, timesteps)


def ancestral_step_(
    x: Tensor,
    model_output: Tensor,
    noise: Tensor | Draw,
    table: Tensor,
    i: Tensor,
    *,
    prediction: str,
    variance: str,
    clip: float | None,
    x_0: Tensor | None = None,
    network_input: Tensor | None = None,
    first_nonfinite: Tensor | None = None,
    backend: str = "auto",
) -> None:
    """x_t becomes x_{t-1} in place, in one pass over memory; nothing waits for the device.

    Args:
        x: float32 [B, C, *spatial], contiguous.
        model_output: [B, C, *spatial], or [B, 2C, *spatial] if the variance is learned; floating.
        noise: float32 [B, C, *spatial], or a `Draw`.
        table: float32 [T, 10], the columns STEP_COLUMNS (`GaussianDiffusion.step_table`).
        i: int64 [1], the row; read where it lies.
        prediction: "epsilon", "sample", "v_prediction" or "previous_sample"; or "epsilon_in_x",
            for a table whose x0_from_output is of ε's share in x (reference.py).
        variance: "fixed_small", "fixed_large", "learned" or "learned_range".
        clip: bound of |x_0|, above 0; None for no bound.
        x_0: float32 like x, contiguous: receives the estimate of x_0. It may be the noise: then
            each step reads the estimate of the step before.
        network_input: [B, C' >= C, *spatial], float32, bfloat16 or float16, contiguous or channels
            last: receives x_{t-1}, the network's next input, and zeros in the channels from C on.
        first_nonfinite: int64 [1], -1 before the chain: raised to i if model_output or x_{t-1}
            holds NaN or Inf. As i counts down, it keeps the first step that did.
        backend: "auto", "reference", "cpu" or "triton"; they agree bit for bit.

    Raises:
        ValueError: shapes, dtypes, layouts or names other than these; a tensor that needs a
            gradient (`ancestral_step` gives one); a backend asked for by name that cannot run this
            call.
        IndexError: i lies outside of the table. Seen on the CPU only; on a GPU looking would wait.
    """
    settings = (prediction, variance, clip)
    written = (x_0, network_input, first_nonfinite)
    step_in_place(_call(x, model_output, noise, table, i, *settings, *written), backend)


def step_in_place(call: StepCall, backend: str = "auto") -> None:
    """`ancestral_step_` of a call that is held as one object, as the cases make it."""
    call.check()
    call.check_layouts()
    needing = _needing_gradient(call)
    if needing:
        raise ValueError(f"ancestral_step_ writes in place, but {needing[0]} needs a gradient")
    ANCESTRAL_STEP(*call, backend)


def ancestral_step(
    x: Tensor,
    model_output: Tensor,
    noise: Tensor | Draw,
    table: Tensor,
    i: Tensor,
    *,
    prediction: str,
    variance: str,
    clip: float | None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """x_{t-1} and the estimate of x_0, both new and float32 [B, C, *spatial].

    The arguments are those of `ancestral_step_`; x may have any memory layout. Where a tensor
    needs a gradient the reference runs, which gives one.
    """
    call = _call(x, model_output, noise, table, i, prediction, variance, clip)
    call.check()
    needing = _needing_gradient(call)
    if needing:
        why = [f"{name} needs a gradient" for name in needing]
        choose_backend("ancestral_step", backend, x.device, {"cpu": why, "triton": why})
        return _reference(call)
    x_prev = x.clone(memory_format=torch.contiguous_format)
    x_0 = torch.empty_like(x_prev)
    ANCESTRAL_STEP(*call._replace(x=x_prev, x_0=x_0), backend)
    return x_prev, x_0


def _call(
    x: Tensor,
    model_output: Tensor,
    noise: Tensor | Draw,
    table: Tensor,
    i: Tensor,
    prediction: str,
    variance: str,
    clip: float | None,
    *written: Tensor | None,
) -> StepCall:
    """The call, not checked; ``written`` are the optional outputs."""
    sources = (
        (None, noise.seed, noise.indices, noise.timesteps)
        if isinstance(noise, Draw)
        else (noise, None, None, None)
    )
    return StepCall(x, model_output, *sources, table, i, prediction, variance, clip, *written)


def _needing_gradient(call: StepCall) -> list[str]:
    if not torch.is_grad_enabled():
        return []
    return [name for name, tensor in call.tensors.items() if tensor.requires_grad]


# ---- the registered op


def _run(*arguments: object) -> None:
    """The arguments of StepCall, then the backend."""
    *fields, backend = arguments
    call = StepCall(*fields)
    _check_row(call)
    reasons = {"cpu": _cpu_unsupported(call), "triton": _triton_unsupported(call)}
    chosen = choose_backend("ancestral_step", str(backend), call.x.device, reasons)
    if chosen == "triton":
        _triton(call)
        return
    run = _cpu if chosen == "cpu" else _reference_in_place
    run(call)
    if call.network_input is not None:
        reference.write_network_input(call.network_input, call.x)
    if call.first_nonfinite is not None:
        reference.note_nonfinite(call.first_nonfinite, call.i, call.model_output, call.x)


def _fake(*arguments: object) -> None:
    """All results are written in place."""


ANCESTRAL_STEP = register(
    "ancestral_step_(Tensor(a!) x, Tensor model_output, Tensor? noise, Tensor? seed, "
    "Tensor? indices, Tensor? timesteps, Tensor table, Tensor i, str prediction, str variance, "
    "float? clip, Tensor(b!)? x_0, Tensor(c!)? network_input, Tensor(d!)? first_nonfinite, "
    "str backend) -> ()",
    _run,
    _fake,
)


def _check_row(call: StepCall) -> None:
    if call.i.device.type != "cpu":
        return
    rows, i = len(call.table), int(call.i)
    if not 0 <= i < rows:
        raise IndexError(f"i: expected a row of the table, 0 to {rows - 1}, got {i}")


def _reference(call: StepCall) -> tuple[Tensor, Tensor]:
    results: tuple[Tensor, Tensor] = reference.ancestral_step(
        *(call.x, call.model_output, _noise(call), call.table, call.i),
        prediction=call.prediction,
        variance=call.variance,
        clip=call.clip,
    )
    return results


def _reference_in_place(call: StepCall) -> None:
    x_prev, x_0 = _reference(call)
    call.x.copy_(x_prev)
    if call.x_0 is not None:
        call.x_0.copy_(x_0)


def _noise(call: StepCall) -> Tensor:
    """The noise given, or drawn from the counter."""
    given: Tensor | None = call.noise
    if given is not None:
        return given
    assert call.seed is not None and call.indices is not None and call.timesteps is not None
    step = call.timesteps.index_select(0, call.i)
    return counter_noise.normal(call.seed, call.indices, step, call.x.shape[1:], Purpose.REVERSE)


def _cpu_unsupported(call: StepCall) -> list[str]:
    """Why the C++ kernel cannot run this call; it leaves network_input to torch."""
    return unsupported_tensors(call._replace(network_input=None).tensors)


def _cpu(call: StepCall) -> None:
    given = {name: tensor.contiguous() for name, tensor in call.tensors.items()}

    def address(name: str) -> int | None:
        return given[name].data_ptr() if name in given else None

    cpu_library().call(
        "fastddpm_ancestral_step",
        *(address(name) for name in ("x", "x_0", "x", "model_output", "noise", "table")),
        *(len(call.table), address("i"), len(call.x), math.prod(call.x.shape[1:])),
        Prediction.of(call.prediction),
        *(VARIANCE_CODES[call.variance], math.inf if call.clip is None else call.clip),
        # The C ABI takes the seed's 64 bits without a sign.
        0 if call.seed is None else int(call.seed) & 0xFFFFFFFFFFFFFFFF,
        *(address("indices"), address("timesteps"), torch.get_num_threads()),
    )


def _triton(call: StepCall) -> None:
    from fastddpm.kernels.ancestral_step import triton_kernel

    triton_kernel.launch(call).run()


def _triton_unsupported(call: StepCall) -> list[str]:
    """Why the Triton kernel cannot run this call; empty if it can."""
    missing = triton_unsupported(call.tensors)
    if missing:
        return missing
    from fastddpm.kernels.ancestral_step import triton_kernel

    reasons: list[str] = triton_kernel.unsupported(call)
    return reasons
