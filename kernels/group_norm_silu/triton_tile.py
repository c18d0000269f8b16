"""What the GroupNorm kernels share: how a tile of the sum is read, summed by groups, activated.

A tile is [TILE_P positions, TILE_C channels] of one sample in channels_last memory: a program's
BLOCK channels, whole groups of GROUP of them, padded to a power of two. The last block of a sample,
the last positions and the padding are masked; where nothing is, EXACT spares the masks.

All arithmetic is float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def block_of(
    program,
    CHUNKS: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE_C: tl.constexpr,
):
    """(sample, chunk, first channel, channels [TILE_C], which of them are the block's own).

    Programs beside each other read channels beside each other: the parts of one memory line.
    """
    BLOCKS: tl.constexpr = CHANNELS // BLOCK
    first = program % BLOCKS * BLOCK
    rest = program // BLOCKS
    inner = tl.arange(0, TILE_C)
    return (rest // CHUNKS).to(tl.int64), rest % CHUNKS, first, first + inner, inner < BLOCK


@triton.jit
def load_row(
    row,
    sample,
    channels,
    held,
    row_stride,
    OWN: tl.constexpr,
    JOINED: tl.constexpr,
    EXACT: tl.constexpr,
):
    """row [TILE_C] in float32; zero for the channels of the skip and of the padding."""
    of_row = row + sample * row_stride + channels
    return load_tile(of_row, held & (channels < OWN), EXACT and JOINED == 0).to(tl.float32)


@triton.jit
def load_sum(
    x,
    row,
    residual,
    skip,
    sample,
    position,
    channels,
    held,
    row_stride,
    POSITIONS: tl.constexpr,
    OWN: tl.constexpr,
    JOINED: tl.constexpr,
    EXACT: tl.constexpr,
):
    """concatenate(x + row + residual, skip) at position [TILE_P, 1] and channels [TILE_C].

    Zero in the channels that are not the block's own. Each channel has its own source and stride,
    so that groups may lie across the border of two.
    """
    mask = (position < POSITIONS) & held[None, :]
    ALONE: tl.constexpr = JOINED == 0
    channel = channels[None, :]
    inside = channel < OWN
    source = x + sample * (POSITIONS * OWN) + channel
    offset = position * OWN
    own = mask
    if not ALONE:
        source = tl.where(inside, source, skip + sample * (POSITIONS * JOINED) + (channel - OWN))
        offset = position * tl.where(inside, OWN, JOINED)
        own = mask & inside
    h = load_tile(source + offset, mask, EXACT).to(tl.float32)
    if row is not None:
        h += load_row(row, sample, channels, held, row_stride, OWN, JOINED, EXACT)[None, :]
    if residual is not None:
        of_residual = residual + sample * (POSITIONS * OWN) + channel + position * OWN
        h += load_tile(of_residual, own, EXACT and ALONE).to(tl.float32)
    return h


@triton.jit
def load_tile(pointers, mask, EXACT: tl.constexpr):
    if EXACT:
        return tl.load(pointers)
    return tl.load(pointers, mask, 0.0)


@triton.jit
def store_tile(pointers, values, mask, EXACT: tl.constexpr):
    values = values.to(pointers.dtype.element_ty)
    if EXACT:
        tl.store(pointers, values)
    else:
        tl.store(pointers, values, mask)


@triton.jit
def product(a, b):
    """a·b rounded by itself, for a product that the next instruction adds to another thread's.

    Fused into that sum, each thread would leave its own product exact and round the other's, and
    threads that add the same two numbers would disagree in the last bit.
    """
    return tl.fma(a, b, 0.0)


@triton.jit
def square(tile, FOLD: tl.constexpr):
    """tile², its sums alike in all threads."""
    # With 16 elements a thread every thread adds some of its own first, and those sums are alike.
    FEW: tl.constexpr = tile.shape[0] * tile.shape[1] < 512 or tile.shape[0] * FOLD == 1
    return product(tile, tile) if FEW else tile * tile


@triton.jit
def sum_groups(tile, GROUP: tl.constexpr, TILE_G: tl.constexpr, FOLD: tl.constexpr):
    """[TILE_P, TILE_C] -> [TILE_G]: the sum of each group's channels over all positions.

    FOLD neighbouring channels lie in one thread's registers and in one group: they are added
    first, so that fewer values go through the shuffles between threads.
    """
    TILE_P: tl.constexpr = tile.shape[0]
    FOLDS: tl.constexpr = tile.shape[1] // FOLD
    folded = tl.sum(tl.reshape(tile, (TILE_P, FOLDS, FOLD)), axis=2)
    return gather_groups(tl.sum(folded, axis=0), GROUP // FOLD, TILE_G)


@triton.jit
def gather_groups(values, GROUP: tl.constexpr, TILE_G: tl.constexpr):
    """[N] -> [TILE_G]: sums of GROUP neighbours each."""
    N: tl.constexpr = values.shape[0]
    if GROUP * TILE_G == N:
        return tl.sum(tl.reshape(values, (TILE_G, GROUP)), axis=1)
    return tl.sum(tl.where(_owners(GROUP, N, TILE_G), values[None, :], 0.0), axis=1)


@triton.jit
def spread_groups(values, GROUP: tl.constexpr, TILE_C: tl.constexpr):
    """[TILE_G] values of groups -> [TILE_C]: each channel its group's."""
    TILE_G: tl.constexpr = values.shape[0]
    if GROUP * TILE_G == TILE_C:
        return tl.reshape(tl.broadcast_to(values[:, None], (TILE_G, GROUP)), (TILE_C,))
    return tl.sum(tl.where(_owners(GROUP, TILE_C, TILE_G), values[:, None], 0.0), axis=0)


@triton.jit
def look_up_groups(values, begin, GROUP: tl.constexpr, TILE_C: tl.constexpr):
    """The same where ``begin`` channels of the first group lie before the tile.

    Where a kernel loops over tiles this leaves them in their layout; in one pass the masked sums
    above are faster (H100, 16×16, 384 channels: 86 % of the bandwidth for 69).
    """
    TILE_G: tl.constexpr = values.shape[0]
    if GROUP * TILE_G == TILE_C:
        return spread_groups(values, GROUP, TILE_C)
    # Padding channels take the last group's.
    group = tl.minimum((tl.arange(0, TILE_C) + begin) // GROUP, TILE_G - 1)
    return tl.gather(values, group, 0)


@triton.jit
def store_groups(
    pointer,
    values,
    slot,
    first,
    CHANNELS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the groups [TILE_G] that begin in the block into row `slot` of [slots, G]."""
    group = first // GROUP + tl.arange(0, values.shape[0])
    begins = group * GROUP
    at = pointer + slot * (CHANNELS // GROUP) + group
    tl.store(at, values, (begins >= first) & (begins < first + BLOCK))


@triton.jit
def _owners(GROUP: tl.constexpr, N: tl.constexpr, TILE_G: tl.constexpr):
    """[TILE_G, N]: whether the channel belongs to the group."""
    return tl.arange(0, TILE_G)[:, None] == tl.arange(0, N)[None, :] // GROUP


@triton.jit
def load_affine(
    weight,
    bias,
    scale,
    shift,
    sample,
    channels,
    held,
    scale_stride,
    shift_stride,
    EXACT: tl.constexpr,
):
    """(factor, offset) [TILE_C] of z = xhat·factor + offset: weight and bias, moved by FiLM."""
    factor = load_tile(weight + channels, held, EXACT).to(tl.float32)
    offset = load_tile(bias + channels, held, EXACT).to(tl.float32)
    if scale is not None:
        film = load_tile(scale + sample * scale_stride + channels, held, EXACT).to(tl.float32) + 1.0
        moved = load_tile(shift + sample * shift_stride + channels, held, EXACT).to(tl.float32)
        factor *= film
        offset = offset * film + moved
    return factor, offset


@triton.jit
def sigmoid(z, FAST: tl.constexpr):
    """σ(z); FAST as in `activate`."""
    d = 1.0 + tl.exp2(z * -LOG2_E)
    if FAST:
        r = tl.rsqrt(d)
        return r * r
    return 1.0 / d


@triton.jit
def activate(h, factor, offset, SILU: tl.constexpr, FAST: tl.constexpr):
    """z or silu(z), z = h·factor + offset: h [TILE_P, TILE_C], the others [TILE_C].

    With t = −z·log₂e, silu(z) = −t·ln 2 / (1 + 2^t): two special-function calls an element. FAST
    replaces the division by 1/a = rsqrt(a)², good to 2⁻²¹. NaN and ±∞ go as in torch.
    """
    if not SILU:
        return h * factor[None, :] + offset[None, :]
    t = h * (factor * -LOG2_E)[None, :] + (offset * -LOG2_E)[None, :]
    if FAST:
        r = tl.rsqrt(tl.exp2(t) * LOG2_E + LOG2_E)
        # A product with −1 is a sign in an operand; −t would be a subtraction from zero.
        return t * -1.0 * r * r
    return t * -LN_2 / (1.0 + tl.exp2(t))
