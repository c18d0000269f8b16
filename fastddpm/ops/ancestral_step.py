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
from fastddpm.kernels.ancestral_step.reference import (
    LEARNED_VARIANCES,
    PREDICTIONS,
    STEP_COLUMNS,
    VARIANCES,
)
from fastddpm.noise import Purpose
from fastddpm.ops.library import choose_backend, cpu_library, unsupported_tensors

# Codes of fastddpm.h.
_PREVIOUS_SAMPLE = 1
_VARIANCE_CODES = {"fixed_small": 0, "fixed_large": 0, "learned": 1, "learned_range": 2}


@dataclass(frozen=True)
class Draw:
    """Noise that the step draws by itself: Purpose.REVERSE of noise.py, never stored.

    seed: in [0, 2^64). indices: int64 [B], the sample indices. timesteps: int64 [T], the original
    timestep of each row of the step table.
    """

    seed: int
    indices: Tensor
    timesteps: Tensor


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
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """x_{t-1} and the estimate of x_0 from x_t, the model's output and noise.

    Args:
        x: float32 [B, C, *spatial].
        model_output: [B, C, *spatial], or [B, 2C, *spatial] if the variance is learned; floating.
        noise: float32 [B, C, *spatial], or a `Draw`.
        table: float32 [T, 10], the columns STEP_COLUMNS (`GaussianDiffusion.step_table`).
        i: int64 [1], the row; read where it lies, so no call waits for the device.
        prediction: "epsilon", "sample", "v_prediction" or "previous_sample".
        variance: "fixed_small", "fixed_large", "learned" or "learned_range".
        clip: bound of |x_0|, above 0; None for no bound.
        backend: "auto", "reference" or "cpu". With a fixed variance they agree bit for bit.
        out: two contiguous float32 tensors like x that receive the results. The first may be x.

    Returns:
        (x_{t-1}, x_0), both float32 [B, C, *spatial].

    Raises:
        ValueError: shapes, dtypes or names other than these; a backend asked for by name that
            cannot run this call.
        IndexError: i lies outside of the table. Seen on the CPU only; on a GPU looking would wait.
    """
    _check(x, model_output, noise, table, i, prediction, variance, clip, out)
    reasons = unsupported(x, model_output, noise, table, i)
    if choose_backend("ancestral_step", backend, reasons) == "cpu":
        return _cpu(x, model_output, noise, table, i, prediction, variance, clip, out)
    z = _drawn(noise, i, x) if isinstance(noise, Draw) else noise
    results: tuple[Tensor, Tensor] = reference.ancestral_step(
        x, model_output, z, table, i, prediction=prediction, variance=variance, clip=clip
    )
    if out is None:
        return results
    return out[0].copy_(results[0]), out[1].copy_(results[1])


def unsupported(
    x: Tensor, model_output: Tensor, noise: Tensor | Draw, table: Tensor, i: Tensor
) -> list[str]:
    """Why the CPU kernel cannot run this call; empty if it can."""
    tensors = {"x": x, "model_output": model_output, "table": table, "i": i}
    if isinstance(noise, Draw):
        tensors |= {"noise.indices": noise.indices, "noise.timesteps": noise.timesteps}
    else:
        tensors["noise"] = noise
    return unsupported_tensors(tensors)


def _cpu(
    x: Tensor,
    model_output: Tensor,
    noise: Tensor | Draw,
    table: Tensor,
    i: Tensor,
    prediction: str,
    variance: str,
    clip: float | None,
    out: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor]:
    x, model_output, table = x.contiguous(), model_output.contiguous(), table.contiguous()
    x_prev, x_0 = out if out is not None else (torch.empty_like(x), torch.empty_like(x))
    z = None if isinstance(noise, Draw) else noise.contiguous()
    seed = noise.seed if isinstance(noise, Draw) else 0
    indices = noise.indices.contiguous() if isinstance(noise, Draw) else None
    timesteps = noise.timesteps.contiguous() if isinstance(noise, Draw) else None
    cpu_library().call(
        "fastddpm_ancestral_step",
        *(x_prev.data_ptr(), x_0.data_ptr(), x.data_ptr(), model_output.data_ptr(), _address(z)),
        *(table.data_ptr(), len(table), i.data_ptr()),
        *(len(x), math.prod(x.shape[1:])),
        _PREVIOUS_SAMPLE if prediction == "previous_sample" else 0,
        *(_VARIANCE_CODES[variance], math.inf if clip is None else clip),
        *(seed, _address(indices), _address(timesteps), torch.get_num_threads()),
    )
    return x_prev, x_0


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _drawn(draw: Draw, i: Tensor, x: Tensor) -> Tensor:
    step = draw.timesteps.index_select(0, i)
    return counter_noise.normal(draw.seed, draw.indices, step, x.shape[1:], Purpose.REVERSE)


def _check(
    x: Tensor,
    model_output: Tensor,
    noise: Tensor | Draw,
    table: Tensor,
    i: Tensor,
    prediction: str,
    variance: str,
    clip: float | None,
    out: tuple[Tensor, Tensor] | None,
) -> None:
    """Raise ValueError unless the arguments are as the docstring of `ancestral_step` says."""
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction: expected one of {PREDICTIONS}, got {prediction!r}")
    if variance not in VARIANCES:
        raise ValueError(f"variance: expected one of {VARIANCES}, got {variance!r}")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip: expected a number above 0 or None, got {clip}")
    if x.ndim < 2 or x.dtype != torch.float32:
        raise ValueError(f"x: expected float32 [B, C, *spatial], got {_described(x)}")
    if not model_output.is_floating_point():
        raise ValueError(f"model_output: expected a floating dtype, got {model_output.dtype}")
    channels = x.shape[1] * (2 if variance in LEARNED_VARIANCES else 1)
    _expect("model_output", model_output, (x.shape[0], channels, *x.shape[2:]), model_output.dtype)
    _expect("table", table, (table.shape[0], len(STEP_COLUMNS)), torch.float32)
    _expect("i", i, (1,), torch.int64)
    _check_row(i, len(table))
    if isinstance(noise, Draw):
        counter_noise.check_draw(noise.seed, noise.indices, i, Purpose.REVERSE)
        _expect("noise.indices", noise.indices, (x.shape[0],), torch.int64)
        _expect("noise.timesteps", noise.timesteps, (table.shape[0],), torch.int64)
    else:
        _expect("noise", noise, tuple(x.shape), torch.float32)
    for tensor in out or ():
        _expect("out", tensor, tuple(x.shape), torch.float32)
        if not tensor.is_contiguous() or tensor.device != x.device:
            raise ValueError(f"out: expected contiguous tensors on {x.device}")


def _check_row(i: Tensor, rows: int) -> None:
    if i.device.type != "cpu" or torch.compiler.is_compiling():
        return
    if not 0 <= int(i) < rows:
        raise IndexError(f"i: expected a row of the table, 0 to {rows - 1}, got {int(i)}")


def _expect(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if tuple(tensor.shape) != shape or tensor.dtype != dtype:
        raise ValueError(f"{name}: expected {dtype} {list(shape)}, got {_described(tensor)}")


def _described(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"
