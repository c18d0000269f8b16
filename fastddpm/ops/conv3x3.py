"""A 3×3 convolution, stride 1, padding 1, without bias: for the few pixels of a small batch.

y = conv3x3(x, weight). Specification: kernels/conv3x3/reference.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastddpm.kernels.conv3x3 import reference
from fastddpm.ops.backends import asked, choose_backend, triton_unsupported
from fastddpm.ops.layout import empty_as, is_channels_last, laid_out_as
from fastddpm.ops.registry import register, register_derivative

HALF = (torch.bfloat16, torch.float16)
# Multiples of so many channels are one step of the kernel's products, in and out.
INPUTS, OUTPUTS = 32, 16
# Whole chains were seen to gain with so many images at a time (README); cuDNN has more of them.
MOST_IMAGES = 16


def conv3x3(x: Tensor, weight: Tensor, *, backend: str = "auto") -> Tensor:
    """The convolution of x with the weight.

    Args:
        x: [B, C, H, W], floating.
        weight: [C', C, 3, 3], in the dtype of x.
        backend: "auto", "reference" or "triton". "auto" is the kernel for half precision and at
            most 16 images of few pixels on a GPU, torch otherwise.

    Returns:
        [B, C', H, W] in the dtype and layout of x.

    Raises:
        ValueError: for shapes that do not agree, or a backend asked for by name that cannot run
            this call.
    """
    if x.dim() != 4 or tuple(weight.shape[1:]) != (x.shape[1], 3, 3):
        raise ValueError(
            f"expected x [B, C, H, W] and weight [C', C, 3, 3], got {list(x.shape)} and"
            f" {list(weight.shape)}"
        )
    if x.dtype != weight.dtype:
        raise ValueError(f"expected x and weight of one dtype, got {x.dtype} and {weight.dtype}")
    y: Tensor = CONV3X3(x, weight, asked(backend))
    return y


def suits(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernel takes maps and weights like these, wherever they are."""
    return (
        x.dtype == weight.dtype
        and x.dtype in HALF
        and min(weight.shape[:2]) > 0
        and weight.shape[1] % INPUTS == 0
        and weight.shape[0] % OUTPUTS == 0
        and is_channels_last(x)
        and is_channels_last(weight)
    )


def unsupported(x: Tensor, weight: Tensor) -> list[str]:
    """Why the Triton kernel cannot run this call; empty if it can."""
    reasons = triton_unsupported({"x": x, "weight": weight})
    if reasons:
        return reasons
    from fastddpm.kernels.conv3x3 import triton_kernel

    found: list[str] = triton_kernel.unsupported(x, weight)
    if not (found or suits(x, weight)):
        found.append(
            f"x is {x.dtype} {list(x.shape)}, weight {weight.dtype} {list(weight.shape)}: expected"
            f" bfloat16 or float16, channels_last, multiples of {INPUTS} channels to {OUTPUTS}"
        )
    return found


def _not_worth_it(x: Tensor, weight: Tensor) -> list[str]:
    """Why "auto" leaves a call to torch that the kernel could run."""
    from fastddpm.kernels.conv3x3.triton_kernel import Device, tile_of

    pixels = x[:, 0].numel()
    tile = tile_of(pixels, x.shape[1], len(weight), x.element_size(), Device.of(x))
    if tile is None or len(x) > MOST_IMAGES:
        return ["cuDNN is as fast with so many pixels"]
    return []


# ---- the registered op


def _empty(x: Tensor, weight: Tensor) -> Tensor:
    return empty_as(x, (x.shape[0], len(weight), *x.shape[2:]))


def _forward(x: Tensor, weight: Tensor, backend: str) -> Tensor:
    reasons = unsupported(x, weight)
    if not reasons and backend == "auto":
        reasons = _not_worth_it(x, weight)
    if choose_backend("conv3x3", backend, x.device, {"triton": reasons}) == "triton":
        from fastddpm.kernels.conv3x3 import triton_kernel

        y = _empty(x, weight)
        if y.numel():
            triton_kernel.launch(x, weight, y).run()
        return y
    return laid_out_as(x, reference.conv3x3(x, weight))


def _fake_forward(x: Tensor, weight: Tensor, backend: str) -> Tensor:
    return _empty(x, weight)


CONV3X3 = register(
    "conv3x3(Tensor x, Tensor weight, str backend) -> Tensor", _forward, _fake_forward
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _ = inputs
    ctx.save_for_backward(x, weight)


def _derivative(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    x, weight = ctx.saved_tensors
    wanted = (ctx.needs_input_grad[0], ctx.needs_input_grad[1], False)
    ones, none = [1, 1], [0, 0]
    d_x, d_weight, _ = torch.ops.aten.convolution_backward(
        *(d_y, x, weight, None, ones, ones, ones, False, none, 1, wanted)
    )
    return d_x, d_weight, None


register_derivative(CONV3X3, _derivative, _setup_context)
