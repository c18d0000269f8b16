"""What a network asks for, and what our program executes for it.

    asked     a convolution 2 B H W C' C k², a linear layer 2 B N C' C, attention 4 B N² C FLOP
    executed  the same, but Winograd's F(4×4, 3×3) does 36 products for 4×4 outputs instead of 144

A multiply-add counts as two; additions around the products (transforms, norms) count as nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.cpu import networks
from benchmarks.gpu.traffic import flop_of
from fastddpm import UNet
from fastddpm.ops.program_abi import (
    Arguments,
    Attention,
    Conv3x3,
    Convolution,
    Input,
    Norm,
    Pointwise,
    Statistics,
)

TILE, PRODUCTS = 4, 36


def asked(unet: UNet) -> int:
    """FLOP of one sample, counted from the shapes of the network's own products."""
    x, t = networks.inputs(unet, 1)
    return flop_of(lambda: unet(x, t))


def executed(code: Iterable[Arguments]) -> int:
    """FLOP of a program's products."""
    return sum(flop(arguments) for arguments in code)


def flop(arguments: Arguments) -> int:
    """FLOP of one instruction's products."""
    if isinstance(arguments, Conv3x3):
        rows, columns = (-(-size // TILE) for size in (arguments.height, arguments.width))
        products = arguments.batch * rows * columns * PRODUCTS
        return 2 * products * channels(arguments.x) * arguments.y.channels
    if isinstance(arguments, Convolution):
        pixels = arguments.batch * arguments.height * arguments.width
        depth = channels(arguments.x) * arguments.kernel**2
        return int(2 * pixels * depth * arguments.y.channels)
    if isinstance(arguments, Attention):
        width = arguments.heads * arguments.head_dim
        return int(4 * arguments.batch * arguments.tokens**2 * width)
    return 0


def described(arguments: Arguments) -> str:
    """The instruction's sizes in words, the same for all layers of one shape."""
    if isinstance(arguments, (Conv3x3, Convolution, Pointwise)):
        x, y = arguments.x, arguments.y
        taps = arguments.kernel if isinstance(arguments, Convolution) else 0
        parts = [
            f"{arguments.height}×{arguments.width}",
            "+".join(str(count) for count in x.channels if count) + f"→{y.channels}",
            f"{taps}×{taps}" if taps else "",
            f"stride {arguments.stride}" if taps and arguments.stride > 1 else "",
            "doubled" if getattr(arguments, "doubled", 0) else "",
            "norm" if x.norm else "",
            "silu" if x.activation else "",
            "residual" if y.residual else "",
        ]
        return " ".join(part for part in parts if part)
    if isinstance(arguments, Attention):
        return f"{arguments.tokens} tokens, {arguments.heads} × {arguments.head_dim}"
    if isinstance(arguments, (Norm, Statistics)):
        return f"{arguments.height}×{arguments.width}"
    return ""


def channels(x: Input) -> int:
    """All that an instruction reads of a pixel."""
    return int(sum(x.channels))
