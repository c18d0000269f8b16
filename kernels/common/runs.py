"""Images held as columns: a thread owns a span of pixels with all their channels, in registers.

A column is a tensor [ROWS] with one pixel and channel of each row, and a row is SPAN consecutive
pixels. An image [CHANNELS, PIXELS] of which a program holds ROWS * SPAN pixels is the tuple of its
CHANNELS * SPAN columns, channels outermost, whether it lies in memory as [CHANNELS, PIXELS] or,
channels last, as [PIXELS, CHANNELS].

In both layouts a row's elements are runs of consecutive ones (a run a channel, or one run), moved
in tiles [ROWS, WIDTH] of up to 128 bits a thread: WIDTH is the largest power of two that divides
the run and fits. A tile is taken apart into columns, and put together, by reshape, permute, split
and join, all inside one thread: separating the channels of a channels-last image is a naming of
registers and moves no data.
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
def load_pairs(
    pointer,
    pixel,
    inside,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
    SPAN: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):
    """The columns, in float32, of a bfloat16 image whose numbers lie in aligned pairs.

    A shift or a mask of a pair's word widens a number; of a number that lies in the upper half of
    a register the compiler makes two instructions.
    """
    words = pointer.to(tl.pointer_type(tl.uint32), bitcast=True)
    if CHANNELS_LAST:
        pairs = load_image(words, pixel, inside, CHANNELS // 2, PIXELS, SPAN, True)
    else:
        pairs = load_image(words, pixel // 2, inside, CHANNELS, PIXELS // 2, SPAN // 2, False)
    columns = ()
    for channel in tl.static_range(CHANNELS):
        for k in tl.static_range(SPAN):
            if CHANNELS_LAST:
                columns += (widened(pairs[channel // 2 * SPAN + k], channel % 2),)
            else:
                columns += (widened(pairs[channel * (SPAN // 2) + k // 2], k % 2),)
    return columns


@triton.jit
def widened(word, UPPER: tl.constexpr):
    """One of the two bfloat16 numbers of a word, the second in its upper half, in float32."""
    bits = word & 0xFFFF0000 if UPPER else word << 16
    return bits.to(tl.float32, bitcast=True)


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
    MOST: tl.constexpr = 128 // pointer.dtype.element_ty.primitive_bitwidth
    WIDTH: tl.constexpr = MOST if COUNT % MOST == 0 else COUNT & -COUNT
    columns = ()
    for first in tl.static_range(0, COUNT, WIDTH):
        at = offsets[:, None] + first + tl.arange(0, WIDTH)[None, :]
        columns += columns_of(tl.load(pointer + at, mask=inside[:, None]), WIDTH)
    return columns


@triton.jit
def store_run(pointer, columns, BEGIN: tl.constexpr, offsets, inside, COUNT: tl.constexpr):
    """Store columns BEGIN, ..., BEGIN + COUNT - 1 from each of offsets [ROWS] on."""
    MOST: tl.constexpr = 128 // pointer.dtype.element_ty.primitive_bitwidth
    WIDTH: tl.constexpr = MOST if COUNT % MOST == 0 else COUNT & -COUNT
    for first in tl.static_range(0, COUNT, WIDTH):
        at = offsets[:, None] + first + tl.arange(0, WIDTH)[None, :]
        tile = tile_of(columns, BEGIN + first, WIDTH).to(pointer.dtype.element_ty)
        tl.store(pointer + at, tile, mask=inside[:, None])


@triton.jit
def columns_of(tile, WIDTH: tl.constexpr):
    """The WIDTH columns of a tile [ROWS, WIDTH], WIDTH 1, 2, 4 or 8: halved until they are one."""
    LEVELS: tl.constexpr = (WIDTH >= 2) + (WIDTH >= 4) + (WIDTH >= 8)
    ROWS: tl.constexpr = tile.shape[0]
    parts = (tile,)
    for level in tl.static_range(LEVELS):
        halves = ()
        for k in tl.static_range(1 << level):
            pairs = tl.reshape(parts[k], (ROWS, 2, WIDTH >> (level + 1)))
            left, right = tl.split(tl.permute(pairs, (0, 2, 1)))
            halves += (left, right)
        parts = halves
    columns = ()
    for k in tl.static_range(WIDTH):
        columns += (tl.reshape(parts[k], (ROWS,)),)
    return columns


@triton.jit
def tile_of(columns, BEGIN: tl.constexpr, WIDTH: tl.constexpr):
    """The tile [ROWS, WIDTH] of the columns from BEGIN on: the inverse of columns_of."""
    LEVELS: tl.constexpr = (WIDTH >= 2) + (WIDTH >= 4) + (WIDTH >= 8)
    ROWS: tl.constexpr = columns[BEGIN].shape[0]
    parts = (tl.reshape(columns[BEGIN], (ROWS, 1)),)
    for k in tl.static_range(1, WIDTH):
        parts += (tl.reshape(columns[BEGIN + k], (ROWS, 1)),)
    for level in tl.static_range(LEVELS):
        wholes = ()
        for k in tl.static_range(WIDTH >> (level + 1)):
            pairs = tl.permute(tl.join(parts[2 * k], parts[2 * k + 1]), (0, 2, 1))
            wholes += (tl.reshape(pairs, (ROWS, 2 << level)),)
        parts = wholes
    return parts[0]
