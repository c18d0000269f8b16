"""The calls whose machine code is judged: what the networks of the README launch.

On one sample: a batch repeats its programs, which share nothing but rows, weights and caches.

tests/test_gpu_static.py holds them to the bars; benchmarks/gpu_static.py makes a table of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastddpm import noise, ops
from fastddpm.kernels.ancestral_step import cases as step_cases
from fastddpm.kernels.common.launch import Launch
from fastddpm.noise import Purpose

from .launches import recorded


class Work(NamedTuple):
    """Elements that a call computes, and what it must read or write, each once."""

    elements: int
    tensors: Sequence[Tensor | None]

    @property
    def least_bytes(self) -> int:
        """The least traffic."""
        given = [tensor for tensor in self.tensors if tensor is not None]
        return sum(tensor.numel() * tensor.element_size() for tensor in given)


class Call(NamedTuple):
    """A call of an op.

    name:          the op and its case.
    run:           makes the call, with the Triton back end.
    instructions:  the most machine instructions an element, for the kernel named.
    ratio:         the most bytes moved, as a multiple of the least.
    exact:         products and sums must be rounded apart.
    in_place:      arguments that hold a value before and are written.
    fused:         fused multiply-adds an element, all of them written as such.
    by_gpu:        ``run`` takes the sm, as the launch depends on it.
    """

    name: str
    run: Callable[..., Work]
    instructions: dict[str, float] = {}  # noqa: RUF012  nobody changes it
    ratio: float = 1.05
    exact: bool = False
    in_place: tuple[str, ...] = ()
    fused: int = 0
    by_gpu: bool = False

    def launches(self, sm: int = 90) -> tuple[list[Launch], Work]:
        """What the call launches, and its work; nothing is run."""
        torch.manual_seed(0)
        with recorded() as launches:
            work = self.run(sm) if self.by_gpu else self.run()
        return launches, work


# ---- GroupNorm and SiLU


def _image(channels: int, size: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(1, size, size, channels).to(dtype).movedim(-1, 1)


def _normalised(
    channels: int,
    size: int,
    *,
    row: bool = False,
    residual: bool = False,
    skip: int = 0,
    film: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    backward: bool = False,
) -> Callable[[], Work]:
    """group_norm_silu of an image [1, channels, size, size], ``skip`` of whose channels join it."""

    def rows(wanted: bool, count: int) -> Tensor | None:
        return torch.randn(1, count).to(dtype) if wanted else None

    def run() -> Work:
        own = channels - skip
        x = _image(own, size, dtype).requires_grad_(backward)
        affine = [torch.randn(channels, requires_grad=backward) for _ in range(2)]
        parts = {
            "row": rows(row, own),
            "residual": _image(own, size, dtype) if residual else None,
            "skip": _image(skip, size, dtype) if skip else None,
            "scale": rows(film, channels),
            "shift": rows(film, channels),
        }
        arguments = {"keep_total": residual or skip > 0, "backend": "triton"}
        if not backward:
            y, total = ops.group_norm_silu(x, *affine, 32, 1e-6, **parts, **arguments)
            return Work(y.numel(), [x, *affine, *parts.values(), y, total])
        with recorded():
            y, _ = ops.group_norm_silu(x, *affine, 32, 1e-6, **parts, **arguments)
        d_y = torch.randn_like(y)
        y.backward(d_y)
        return Work(y.numel(), [x, *affine, *parts.values(), d_y, x.grad, *affine])

    return run


def _summed(channels: int, size: int, resample: str | None) -> Callable[[], Work]:
    def run() -> Work:
        x, residual = _image(channels, size), _image(channels, size)
        row = torch.randn(1, channels).bfloat16()
        if resample is None:
            total = ops.residual_sum(x, row=row, residual=residual, backend="triton")
            return Work(total.numel(), [x, residual, row, total])
        resampled, total = ops.resampled_sum(
            x, row=row, residual=residual, resample=resample, backend="triton"
        )
        return Work(resampled.numel(), [x, residual, row, resampled, total])

    return run


# ---- Noise


def _stepped(name: str) -> Callable[[], Work]:
    every = {case.name: case for case in step_cases.CASES + step_cases.NETWORK_CASES}

    def run() -> Work:
        # A kernel module is imported when it is used, like triton.
        from fastddpm.kernels.ancestral_step import triton_kernel

        call = every[name]._replace(shape=(1, 3, 32, 32)).call(1)
        triton_kernel.launch(call).run()
        read, written = [call.x, call.model_output, call.noise], [call.x, call.x_0]
        return Work(call.x.numel(), [*read, *written, call.network_input])

    return run


def _diffused() -> Work:
    x_0, t, table = torch.randn(1, 3, 32, 32), torch.tensor([900]), torch.rand(1000, 2)
    seed, indices, step = noise.seed_tensor(0), torch.arange(1), torch.tensor([7])
    made = ops.q_sample(x_0, t, table, seed, indices, step, backend="triton")
    return Work(x_0.numel(), [x_0, *made])


def _drawn() -> Work:
    seed, indices, steps = noise.seed_tensor(0), torch.arange(1), torch.tensor([7])
    out = ops.normal(seed, indices, steps, (3, 32, 32), Purpose.INITIAL, backend="triton")
    return Work(out.numel(), [out])


# ---- Convolutions

# A100, H100 and B200: multiprocessors, bytes of shared memory and compute capability.
DEVICES = {80: (108, 163 * 1024, 8), 90: (132, 227 * 1024, 9), 100: (148, 227 * 1024, 10)}


def _convolved(channels: int, size: int) -> Callable[[int], Work]:
    def run(sm: int) -> Work:
        from fastddpm.kernels.conv3x3 import triton_kernel

        x, y = _image(channels, size), _image(channels, size)
        weight = torch.randn(channels, 3, 3, channels) / (9 * channels) ** 0.5
        weight = weight.bfloat16().movedim(-1, 1)
        device = triton_kernel.Device(*DEVICES[sm])
        triton_kernel.launch(x, weight, y, device).run()
        return Work(y.numel(), [x, weight, y])

    return run


# ---- The list. Instructions an element: a normal's is that of the normal it draws.

PER_NORMAL, ONE_PASS, ONE_PASS_SUM, APPLY = 90.0, 17.0, 21.0, 12.0
_STEP = {"ancestral_step_kernel": PER_NORMAL}
_UPDATED = ("x_pointer", "first_nonfinite_pointer")
_PLAIN = {"group_norm_silu_one_pass": ONE_PASS}
_SUM = {"group_norm_silu_one_pass": ONE_PASS_SUM}
_SPLIT = {"group_norm_silu_apply": APPLY}
# A map whose groups fit no program is read twice: 3 accesses of an element for 2, 4 for 3 with the
# sum written, 5 for 4 with a residual too, and backward 5 for 3. Each kernel by itself moves what
# it must.
READ_TWICE, READ_TWICE_JOINED, READ_TWICE_SUM, READ_TWICE_BACKWARD = 3 / 2, 4 / 3, 5 / 4, 5 / 3

CALLS = (
    Call("ancestral_step, network", _stepped("cifar_network"), _STEP, 1.05, True, _UPDATED),
    Call("ancestral_step, float32", _stepped("cifar_draws"), _STEP, 1.05, True, _UPDATED),
    Call("ancestral_step, learned", _stepped("learned_network"), _STEP, 1.05, True, _UPDATED, 11),
    Call("q_sample", _diffused, {"q_sample_kernel": PER_NORMAL}, exact=True),
    Call("normal", _drawn, {"normal_kernel": PER_NORMAL}, exact=True),
    Call("group_norm_silu 32²×128", _normalised(128, 32), _PLAIN),
    Call("group_norm_silu 32²×128, row", _normalised(128, 32, row=True), _SUM),
    Call("group_norm_silu 32²×128, sum", _normalised(128, 32, row=True, residual=True), _SUM),
    Call(
        "group_norm_silu 32²×256+128, joined",
        _normalised(384, 32, skip=128),
        _SPLIT,
        1.05 * READ_TWICE_JOINED,
    ),
    Call("group_norm_silu 16²×256", _normalised(256, 16), _PLAIN),
    Call("group_norm_silu 16²×256, FiLM", _normalised(256, 16, film=True), _SUM),
    Call("group_norm_silu 16²×256+256, joined", _normalised(512, 16, skip=256), _SUM),
    Call("group_norm_silu 8²×256", _normalised(256, 8), _PLAIN),
    Call("group_norm_silu 4²×256", _normalised(256, 4), _PLAIN),
    Call("group_norm_silu 32²×128, float32", _normalised(128, 32, dtype=torch.float32), _PLAIN),
    Call("group_norm_silu 64²×128", _normalised(128, 64), _SPLIT, 1.05 * READ_TWICE),
    Call(
        "group_norm_silu 64²×128, sum",
        _normalised(128, 64, row=True, residual=True),
        _SPLIT,
        1.05 * READ_TWICE_SUM,
    ),
    Call("group_norm_silu 32²×128, backward", _normalised(128, 32, row=True, backward=True)),
    Call(
        "group_norm_silu 64²×128, backward",
        _normalised(128, 64, row=True, backward=True),
        {},
        1.05 * READ_TWICE_BACKWARD,
    ),
    Call("residual_sum 32²×128", _summed(128, 32, None)),
    Call("resampled_sum 32²×128, pad", _summed(128, 32, "pad")),
    Call("resampled_sum 16²×256, double", _summed(256, 16, "double")),
)

# Products in tiles: each tile reads its two factors, so a factor is read once for every tile that
# needs it, out of the L2 cache. They have bars of their own (tests/test_ptx_conv3x3.py).
CONVOLUTIONS = tuple(
    Call(f"conv3x3 {size}²×{channels}", _convolved(channels, size), by_gpu=True)
    for channels, size in ((128, 32), (256, 16), (256, 8), (256, 4))
)
