"""Images held as columns: a thread owns a span of pixels with all their channels, in registers.

A column is a tensor [ROWS] with one pixel and channel of each row, and a row is SPAN consecutive
pixels. An image [CHANNELS, PIXELS] of which a program holds ROWS * SPAN pixels is the tuple of its
CHANNELS * SPAN columns, channels outermost, whether it lies in memory as [CHANNELS, PIXELS] or,
channels last, as [PIXELS, CHANNELS].

In both layouts a row's elements are runs of consecutive ones (a run a channel, or one run), moved
in tiles [ROWS, WIDTH] of up to 128 bits a thread. A tile is taken apart into columns, and put
together, by reshape, permute, split and join, all inside one thread: separating the channels of a
channels-last image is a naming of registers and moves no data.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_image(
    pointer,  # the sample's first element
    pixel,  # int32 [ROWS], the first pixel of each row
    inside,  # bool [ROWS], rows to load
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
    SPAN: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):
    """The columns of an image, channels outermost."""
    columns = ()
    if CHANNELS_LAST:
        run = load_run(pointer, pixel * CHANNELS, inside, SPAN * CHANNELS)
        for channel in tl.static_range(CHANNELS):
            for k in tl.static_range(SPAN):
                columns += (run[k * CHANNELS + channel],)
    else:
        for channel in tl.static_range(CHANNELS):
            columns += load_run(pointer, pixel + channel * PIXELS, inside, SPAN)
    return columns


@triton.jit
def store_image(
    pointer,
    columns,
    pixel,
    inside,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
    SPAN: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):
    """Store the columns of an image in the pointer's dtype; arguments as in load_image."""
    if CHANNELS_LAST:
        run = ()
        for k in tl.static_range(SPAN):
            for channel in tl.static_range(CHANNELS):
                run += (columns[channel * SPAN + k],)
        store_run(pointer, run, 0, pixel * CHANNELS, inside, SPAN * CHANNELS)
    else:
        for channel in tl.static_range(CHANNELS):
            store_run(pointer, columns, channel * SPAN, pixel + channel * PIXELS, inside, SPAN)


@triton.jit
def load_run(pointer, offsets, inside, COUNT: tl.constexpr):
    """The COUNT elements from each of offsets [ROWS] on, a tuple of columns."""
    WIDTH: tl.constexpr = tile_width(COUNT, pointer.dtype.element_ty.primitive_bitwidth)
    columns = ()
    for first in tl.static_range(0, COUNT, WIDTH):
        at = offsets[:, None] + first + tl.arange(0, WIDTH)[None, :]
        columns += columns_of(tl.load(pointer + at, mask=inside[:, None]), WIDTH)
    return columns


@triton.jit
def store_run(pointer, columns, BEGIN: tl.constexpr, offsets, inside, COUNT: tl.constexpr):
    """Store columns BEGIN, ..., BEGIN + COUNT - 1 from each of offsets [ROWS] on."""
    WIDTH: tl.constexpr = tile_width(COUNT, pointer.dtype.element_ty.primitive_bitwidth)
    for first in tl.static_range(0, COUNT, WIDTH):
        at = offsets[:, None] + first + tl.arange(0, WIDTH)[None, :]
        tile = tile_of(columns, BEGIN + first, WIDTH).to(pointer.dtype.element_ty)
        tl.store(pointer + at, tile, mask=inside[:, None])


@triton.jit
def columns_of(tile, WIDTH: tl.constexpr):
    """The WIDTH columns of a tile [ROWS, WIDTH], WIDTH a power of two."""
    if WIDTH == 1:
        return (tl.reshape(tile, (tile.shape[0],)),)
    else:
        halves = tl.permute(tl.reshape(tile, (tile.shape[0], 2, WIDTH // 2)), (0, 2, 1))
        left, right = tl.split(halves)
        return columns_of(left, WIDTH // 2) + columns_of(right, WIDTH // 2)


@triton.jit
def tile_of(columns, BEGIN: tl.constexpr, WIDTH: tl.constexpr):
    """The tile [ROWS, WIDTH] of the columns from BEGIN on: the inverse of columns_of."""
    if WIDTH == 1:
        return tl.reshape(columns[BEGIN], (columns[BEGIN].shape[0], 1))
    else:
        left = tile_of(columns, BEGIN, WIDTH // 2)
        right = tile_of(columns, BEGIN + WIDTH // 2, WIDTH // 2)
        halves = tl.permute(tl.join(left, right), (0, 2, 1))
        return tl.reshape(halves, (left.shape[0], WIDTH))


@triton.jit
def tile_width(COUNT: tl.constexpr, BITS: tl.constexpr):
    """The widest tile: a power of two that divides COUNT, of at most 128 bits."""
    DIVISOR: tl.constexpr = COUNT & -COUNT
    return DIVISOR if DIVISOR * BITS < 128 else 128 // BITS
