"""What a network asks for, and what our program executes for it.

    asked     a convolution 2 B H W C' C k², a linear layer 2 B N C' C, attention 4 B N² C FLOP
    executed  the same, but Winograd's F(4×4, 3×3) does 36 products for 4×4 outputs instead of 144,
              and 100 for 8×8 of a doubled map that is convolved phase by phase
    moved     bytes of maps and weights, each read or written once

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
    Packing,
    Pointwise,
    Resample,
    Statistics,
)

TILE, PRODUCTS, PHASES_PRODUCTS, PHASE_TILES = 4, 36, 100, 16
READ_PER_PIXEL = {Resample.NONE: 1, Resample.HALVE: 4, Resample.DOUBLE: 0.25}


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
        products = arguments.batch * _products(arguments)
        return int(2 * products * channels(arguments.x) * arguments.y.channels)
    if isinstance(arguments, Convolution):
        pixels = arguments.batch * arguments.height * arguments.width
        depth = channels(arguments.x) * arguments.kernel**2
        return int(2 * pixels * depth * arguments.y.channels)
    if isinstance(arguments, Attention):
        width = arguments.heads * arguments.head_dim
        return int(4 * arguments.batch * arguments.tokens**2 * width)
    return 0


def _products(conv: Conv3x3) -> int:
    """Of an image, for one input and one output channel; the choice is that of struct Map in
    kernels/conv3x3/blocks.h."""
    height, width = conv.height, conv.width
    whole = _tiles(height, width) * PRODUCTS
    small = _tiles(height // 2, width // 2)
    apart = conv.doubled and conv.packing != Packing.TRANSFORMED and small >= PHASE_TILES
    products = small * PHASES_PRODUCTS
    return products if apart and products * 5 <= whole * 4 else whole


def _tiles(height: int, width: int) -> int:
    return -(-height // TILE) * -(-width // TILE)


def bytes_moved(arguments: Arguments) -> int:
    """The least that a convolution, a pointwise instruction or attention moves: what it reads of
    maps and weights and what it writes, each once. Of others 0: they are not counted."""
    if isinstance(arguments, Attention):
        width = arguments.heads * arguments.head_dim
        return int(16 * arguments.batch * arguments.tokens * width)
    if not isinstance(arguments, (Conv3x3, Convolution, Pointwise)):
        return 0
    x, y = arguments.x, arguments.y
    written = arguments.batch * arguments.height * arguments.width
    read = written
    if isinstance(arguments, Convolution):
        read = arguments.batch * arguments.input_height * arguments.input_width
    elif isinstance(arguments, Conv3x3) and arguments.doubled:
        read //= 4
    elif isinstance(arguments, Pointwise):
        read = int(read * READ_PER_PIXEL[arguments.resample])
    maps = read * channels(x) + written * y.channels * (2 if y.residual else 1)
    return int(4 * maps + _weight_bytes(arguments))


def _weight_bytes(arguments: Conv3x3 | Convolution | Pointwise) -> int:
    if isinstance(arguments, Pointwise):
        return 0
    taps = 9 if isinstance(arguments, Conv3x3) else arguments.kernel**2
    if arguments.packing == Packing.TRANSFORMED:
        taps = PRODUCTS
    size = 2 if arguments.packing == Packing.FLOAT16 else 4
    return int(size * taps * channels(arguments.x) * arguments.y.channels)


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
