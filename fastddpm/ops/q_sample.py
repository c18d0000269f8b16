"""The forward process, its noise drawn on the way. Specification: kernels/q_sample/reference.py.

x_t = sqrt(alphas_cumprod_t) x_0 + sqrt(1 - alphas_cumprod_t) noise
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastddpm import noise
from fastddpm.kernels.q_sample import reference
from fastddpm.noise import Purpose
from fastddpm.ops.backends import choose_backend, triton_unsupported
from fastddpm.ops.library import cpu_library, unsupported_tensors
from fastddpm.ops.registry import register


def q_sample(
    x_0: Tensor,
    t: Tensor,
    table: Tensor,
    seed: Tensor,
    indices: Tensor,
    step: Tensor,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """x_t and the noise in it, drawn as Purpose.FORWARD; nothing waits for the device.

    Args:
        x_0: float32 [B, C, *spatial].
        t: int64 [B], the row of the table for each sample, in [0, T).
        table: float32 [T, 2], the columns FORWARD_COLUMNS.
        seed: int64 [1], `noise.seed_tensor`.
        indices: int64 [B], the sample indices.
        step: int64 [1] or [B], the counter's step word.
        backend: "auto", "reference", "cpu" or "triton"; they agree bit for bit.

    Returns:
        (x_t, noise), both float32 [B, C, *spatial] and contiguous.

    Raises:
        ValueError: shapes or dtypes other than these; x_0 needs a gradient; a backend asked for by
            name that cannot run this call.
        IndexError: a t outside of the table. Seen on the CPU only; on a GPU looking would wait.
    """
    _check(x_0, t, table)
    noise.check_draw(seed, indices, step, Purpose.FORWARD)
    if len(indices) != len(x_0):
        raise ValueError(f"indices: expected int64 [{len(x_0)}], got [{len(indices)}]")
    results: tuple[Tensor, Tensor] = _q_sample(x_0, t, table, seed, indices, step, backend)
    return results


def _check(x_0: Tensor, t: Tensor, table: Tensor) -> None:
    if x_0.dtype != torch.float32 or x_0.ndim < 2:
        raise ValueError(
            f"x_0: expected float32 [B, C, *spatial], got {x_0.dtype} {list(x_0.shape)}"
        )
    if x_0.requires_grad and torch.is_grad_enabled():
        raise ValueError("x_0: expected a tensor that needs no gradient")
    if t.dtype != torch.int64 or tuple(t.shape) != (len(x_0),):
        raise ValueError(f"t: expected int64 [{len(x_0)}], got {t.dtype} {list(t.shape)}")
    columns = len(reference.FORWARD_COLUMNS)
    if table.dtype != torch.float32 or table.ndim != 2 or table.shape[1] != columns:
        raise ValueError(
            f"table: expected float32 [T, {columns}], got {table.dtype} {list(table.shape)}"
        )


# ---- the registered op


def _run(
    x_0: Tensor,
    t: Tensor,
    table: Tensor,
    seed: Tensor,
    indices: Tensor,
    step: Tensor,
    backend: str,
) -> tuple[Tensor, Tensor]:
    _check_rows(t, len(table))
    tensors = {"x_0": x_0, "t": t, "table": table, "seed": seed, "indices": indices, "step": step}
    reasons = {
        "cpu": unsupported_tensors(tensors),
        "triton": triton_unsupported(tensors) or _triton_unsupported(x_0),
    }
    chosen = choose_backend("q_sample", backend, x_0.device, reasons)
    if chosen != "reference":
        run = _triton if chosen == "triton" else _cpu
        inputs = [v.contiguous() for v in (x_0, t, table, seed, indices, step)]
        x_t, z = torch.empty_like(inputs[0]), torch.empty_like(inputs[0])
        run(x_t, z, *inputs)
        return x_t, z
    z = noise.normal(seed, indices, step, x_0.shape[1:], Purpose.FORWARD)
    return reference.q_sample(x_0, t, table, z).contiguous(), z


def _check_rows(t: Tensor, rows: int) -> None:
    if t.device.type != "cpu" or not len(t):
        return
    least, most = (int(bound) for bound in t.aminmax())
    if least < 0 or most >= rows:
        raise IndexError(f"t: expected rows of the table, 0 to {rows - 1}, got {least} to {most}")


def _fake(x_0: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return x_0.new_empty(x_0.shape), x_0.new_empty(x_0.shape)


_q_sample = register(
    "q_sample(Tensor x_0, Tensor t, Tensor table, Tensor seed, Tensor indices, Tensor step, "
    "str backend) -> (Tensor, Tensor)",
    _run,
    _fake,
)


def _cpu(
    x_t: Tensor,
    z: Tensor,
    x_0: Tensor,
    t: Tensor,
    table: Tensor,
    seed: Tensor,
    indices: Tensor,
    step: Tensor,
) -> None:
    cpu_library().call(
        "fastddpm_q_sample",
        *(v.data_ptr() for v in (x_t, z, x_0, t, table)),
        *(len(table), indices.data_ptr(), len(x_0), math.prod(x_0.shape[1:])),
        # The C ABI takes the seed's 64 bits without a sign.
        int(seed) & 0xFFFFFFFFFFFFFFFF,
        *(step.data_ptr(), len(step), torch.get_num_threads()),
    )


def _triton(x_t: Tensor, z: Tensor, *inputs: Tensor) -> None:
    from fastddpm.kernels.q_sample import triton_kernel

    triton_kernel.launch(x_t, z, *inputs).run()


def _triton_unsupported(x_0: Tensor) -> list[str]:
    from fastddpm.kernels.q_sample import triton_kernel

    reasons: list[str] = triton_kernel.unsupported(x_0)
    return reasons
