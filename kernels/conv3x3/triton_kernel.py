"""A 3×3 convolution of few pixels on a GPU's tensor cores: an implicit matrix product.

    y[p, n] = Σ over taps (dy, dx) and channels c of x[p + (dy, dx), c] · w[n, dy, dx, c]

A program has a tile of pixels and output channels and walks through the nine taps, some channels of
one at a time. cuDNN's tiles are made for large batches: with few pixels they fill a small part of
the multiprocessors, one after another. Here the tile is the largest whose programs fill most of
them (`tile_of`).

H100, bfloat16, µs of this kernel and of cuDNN's: 128 channels at 32×32, 4.5 and 6.9 with one image,
11.9 and 16.5 with sixteen; 256 at 16×16, 5.9 and 8.4, 13.5 and 16.2; 256 at 8×8, 6.2 and 8.3, 7.1
and 8.7. Specification: reference.conv3x3(x, weight).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastddpm.kernels.common import channels_last
from fastddpm.kernels.common.launch import Launch

# Of a tap in one product, as `unsupported` allows them.
LEAST_CHANNELS = 32
# Programs for each multiprocessor, at least, for a tile to be worth its size.
FILLED = 0.7
# Shared memory that is not the stages'.
RESERVED_BYTES = 2048
# Of more pixels a tile is multiplied by tensor memory from compute capability 10 on.
MOST_PIXELS_WITHOUT_TENSOR_MEMORY, TENSOR_MEMORY = 32, 10


@dataclass(frozen=True)
class Tile:
    """pixels, outputs: of a program. channels: of a tap in one product; halves: products of so
    many channels side by side, each into a sum of its own, for tiles whose products wait for each
    other. stages: steps whose factors are on their way at a time, at most."""

    pixels: int
    outputs: int
    channels: int
    halves: int
    warps: int
    stages: int = 3

    def stage_bytes(self, itemsize: int) -> int:
        """Shared memory of one step's two factors."""
        return (self.pixels + self.outputs) * self.channels * self.halves * itemsize


# Largest first.
TILES = (
    Tile(128, 128, 64, 1, 8, stages=5),
    Tile(64, 128, 128, 1, 4),
    Tile(64, 64, 128, 1, 4),
    Tile(64, 32, 256, 1, 4),
    Tile(32, 32, 128, 1, 4),
    Tile(16, 32, 128, 2, 2),
    Tile(16, 16, 256, 2, 2),
)


@dataclass(frozen=True)
class Device:
    """What a tile is chosen for. capability: its compute capability's first number."""

    multiprocessors: int
    shared_bytes: int
    capability: int = 9

    @classmethod
    def of(cls, x: Tensor) -> Device:
        """x's; for tensors on a CPU, which are interpreted, an H100."""
        if x.device.type != "cuda":
            return cls(132, 227 * 1024)
        properties: Any = torch.cuda.get_device_properties(x.device)
        shared = properties.shared_memory_per_block_optin
        return cls(properties.multi_processor_count, shared, properties.major)

    @property
    def tiles(self) -> list[Tile]:
        """Largest first. Those that would need tensor memory have been run nowhere: not them."""
        if self.capability < TENSOR_MEMORY:
            return list(TILES)
        return [tile for tile in TILES if tile.pixels <= MOST_PIXELS_WITHOUT_TENSOR_MEMORY]


@triton.jit
def conv3x3_kernel(
    x,
    weight,
    y,
    pixels,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    TILE_P: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_C: tl.constexpr,
    HALVES: tl.constexpr,
):
    """x [pixels, INPUTS], weight [OUTPUTS, 3, 3, INPUTS], y [pixels, OUTPUTS]."""
    pixel = tl.program_id(1) * TILE_P + tl.arange(0, TILE_P)
    output = tl.program_id(0) * TILE_N + tl.arange(0, TILE_N)
    column, line = pixel % WIDTH, pixel // WIDTH % HEIGHT
    inner = tl.arange(0, TILE_C)
    STEPS: tl.constexpr = INPUTS // (TILE_C * HALVES)
    total = tl.zeros((TILE_P, TILE_N), tl.float32)
    other = tl.zeros((TILE_P, TILE_N), tl.float32)
    for step in tl.range(9 * STEPS):
        tap = step // STEPS
        down, right = tap // 3 - 1, tap % 3 - 1
        i, j = line + down, column + right
        inside = (pixel < pixels) & (i >= 0) & (i < HEIGHT) & (j >= 0) & (j < WIDTH)
        from_x = x + (pixel + down * WIDTH + right)[:, None] * INPUTS
        from_weight = weight + (output[None, :] * 9 + tap) * INPUTS
        channel = step % STEPS * (TILE_C * HALVES) + inner
        a = tl.load(from_x + channel[None, :], inside[:, None], 0.0)
        b = tl.load(from_weight + channel[:, None])
        total = tl.dot(a, b, total)
        if HALVES == 2:
            a = tl.load(from_x + (channel + TILE_C)[None, :], inside[:, None], 0.0)
            b = tl.load(from_weight + (channel + TILE_C)[:, None])
            other = tl.dot(a, b, other)
    if HALVES == 2:
        total += other
    to = y + pixel[:, None] * OUTPUTS + output[None, :]
    tl.store(to, total.to(y.dtype.element_ty), (pixel < pixels)[:, None])


def tile_of(pixels: int, inputs: int, outputs: int, itemsize: int, device: Device) -> Tile | None:
    """The tile of a convolution; None where the largest fills a device more than once."""
    usable = [tile for tile in device.tiles if outputs % tile.outputs == 0]
    counts = [triton.cdiv(pixels, tile.pixels) * (outputs // tile.outputs) for tile in usable]
    if not usable or counts[0] > device.multiprocessors:
        return None
    filling = (
        t for t, n in zip(usable, counts, strict=True) if n >= FILLED * device.multiprocessors
    )
    return _fitted(next(filling, usable[-1]), inputs, itemsize, device)


def launch(x: Tensor, weight: Tensor, y: Tensor, device: Device | None = None) -> Launch:
    """The launch that writes y. x [B, C, H, W], weight [C', C, 3, 3], y [B, C', H, W], all of them
    channels_last. device: to choose the tile for; x's if None."""
    batch, inputs, height, width = x.shape
    pixels, outputs, itemsize = batch * height * width, len(weight), x.element_size()
    device = device or Device.of(x)
    # A call by name may have more pixels than are worth it: the largest tile then.
    tile = tile_of(pixels, inputs, outputs, itemsize, device)
    if tile is None:
        largest = next(tile for tile in device.tiles if outputs % tile.outputs == 0)
        tile = _fitted(largest, inputs, itemsize, device)
    stages = (device.shared_bytes - RESERVED_BYTES) // tile.stage_bytes(itemsize)
    return Launch(
        conv3x3_kernel,
        (outputs // tile.outputs, triton.cdiv(pixels, tile.pixels)),
        {"x": x, "weight": weight, "y": y, "pixels": pixels},
        {
            **{"HEIGHT": height, "WIDTH": width, "INPUTS": inputs, "OUTPUTS": outputs},
            **{"TILE_P": tile.pixels, "TILE_N": tile.outputs, "TILE_C": tile.channels},
            "HALVES": tile.halves,
        },
        num_warps=tile.warps,
        num_stages=min(stages, tile.stages),
        writes=("y",),
    )


def unsupported(x: Tensor, weight: Tensor) -> list[str]:
    """Why the kernel cannot run on such x and weight (ops.conv3x3.suits); empty if it can."""
    reasons: list[str] = channels_last.unsupported(x)
    if weight.data_ptr() % channels_last.VECTOR_BYTES:
        reasons.append(f"weight does not start at a multiple of {channels_last.VECTOR_BYTES} bytes")
    if max(x.numel(), weight.numel(), x[:, 0].numel() * len(weight)) >= 2**31:
        reasons.append(f"{list(x.shape)} to {len(weight)} channels: 2^31 elements or more")
    return reasons


def _fitted(tile: Tile, inputs: int, itemsize: int, device: Device) -> Tile:
    """With as many channels a step as divide the inputs and let two steps into shared memory."""
    divisor = inputs & -inputs
    halves = tile.halves if divisor >= tile.halves * LEAST_CHANNELS else 1
    channels = min(tile.channels, divisor // halves)
    fitted = replace(tile, channels=channels, halves=halves)
    while 2 * fitted.stage_bytes(itemsize) > device.shared_bytes - RESERVED_BYTES:
        fitted = replace(fitted, channels=fitted.channels // 2)
    return fitted
