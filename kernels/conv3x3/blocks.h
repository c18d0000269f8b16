// How a convolution is cut into pieces, and where its scratch numbers lie.
//
// A line is a row of tiles: 4 rows of pixels of one image, a strip of the statistics. Lines of all
// images follow one another. A block of lines is transformed into V, which the team shares; then
// each piece, a panel of output channels by some lines of the block, is multiplied by one member:
//
//     V [in / depth][36][tiles of a block][depth]    U [6][depth][PANEL]
//     M [tiles of a piece][36][PANEL]
//
// None of this changes a result: every sum runs over the input channels in their order.
#pragma once

#include "../common/input.h"
#include "packing.h"

namespace {

// Tiles of a piece: the weights' transform is shared by so many, and M takes 300 KB.
constexpr int64_t PIECE_TILES = 2048 / PANEL;
// A member takes so many pieces between two barriers, so that none waits long for the last; V is no
// larger than that, and stays in the cache.
constexpr int64_t MEMBER_PIECES = 3;
// Input channels whose V lies together and whose U is a piece's: 32 KB of a panel for a frequency.
constexpr int64_t SLAB = 256;
constexpr int64_t U_FREQUENCY = SLAB * PANEL + 16;  // floats between two frequencies of U
// So few tiles are multiplied with their sums in registers, half a row of frequencies at a time
// (four tiles by 24 sums: a row); distances between two tiles and two frequencies of V are
// constants then.
constexpr int REGISTER_SUMS = VECTORS * MAX_ROWS >= 24 ? 24 : 12;
constexpr int FEW = REGISTER_SUMS / 3;
constexpr int64_t FEW_TILE = SLAB + 16, FEW_FREQUENCY = (FEW * FEW_TILE / 16 | 1) * 16;
// Input channels whose U a piece of 8 tiles or fewer takes at a time, so that U stays in L1; where
// a turn has several k, short sums cost more than that gains (AVX2, batch 2: SLAB is 1.05 of 32).
constexpr int64_t THIN_DEPTH = TURN == 1 ? 512 / PANEL : SLAB;
// From so many tiles a member on, each has lines of its own. 8 pay if they are few; else each would
// spend a third of its time on the transform of all weights (AVX2 on Zen 5, November 2026).
constexpr int64_t MEMBER_TILES = FEW >= 8 ? 8 : 16;
// Input channels that are normalised and transformed together.
constexpr int64_t CHUNK = 64;
constexpr int64_t RING_PIXEL =
    CHUNK + 16;  // floats of a pixel: whole vectors are written from any one on
// Lines that are transformed together: 2 of 4 n + 2 rows of pixels are read twice.
constexpr int64_t RUN_LINES = 8;

// The least number of floats for `count` that is an odd number of cache lines: no two rows of so
// many floats meet in one set of a cache more often than they must.
static inline int64_t odd_lines(int64_t count) { return (round_up(count, 16) / 16 | 1) * 16; }

static inline int64_t quotient_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

static inline int64_t tiles_of(int64_t pixels) { return quotient_up(pixels, TILE); }

struct Blocks {
  int64_t in, panels;
  int64_t across, strips;  // tiles of a line, lines of an image
  int64_t piece_lines, block_lines;
  int64_t slab;                         // input channels that lie together in V
  int64_t depth;                        // input channels whose weights are transformed at a time
  int64_t v_tile, v_frequency, v_slab;  // floats between two tiles, frequencies, slabs
  int64_t m_tile;
  bool few;        // a block has few tiles: their sums live in registers
  int64_t shared;  // floats of V
  int64_t row;     // of a row of pixels in the ring
  int64_t member;  // of U, M and the ring of one member

  // For so many of the lines of all images, by so many threads.
  Blocks(const fastddpm_conv3x3& conv, int64_t lines, int64_t threads) {
    in = all_channels(conv.x);
    panels = panels_of(conv.y.channels);
    across = tiles_of(conv.width);
    strips = tiles_of(conv.height);
    // A panel for everyone, or fewer tiles a piece; then pieces of nearly equal size.
    const int64_t most =
        smaller(larger(1, PIECE_TILES / across), quotient_up(lines, quotient_up(threads, panels)));
    const int64_t pieces = quotient_up(lines, most);
    const int64_t blocks = larger(1, pieces * panels / (MEMBER_PIECES * threads));
    block_lines = quotient_up(lines, smaller(blocks, pieces));
    const int64_t parts = quotient_up(block_lines, most);
    piece_lines = quotient_up(block_lines, parts);
    const int64_t tiles = piece_lines * across;
    slab = smaller(in, round_up(quotient_up(in, quotient_up(in, SLAB)), CHUNK));
    const bool transformed = conv.packing == FASTDDPM_PACKING_TRANSFORMED;
    few = block_lines * across <= FEW && !transformed;
    depth = smaller(slab, few ? 64 : tiles <= 8 && !transformed ? THIN_DEPTH : SLAB);
    v_tile = few ? FEW_TILE : odd_lines(slab);
    v_frequency = few ? FEW_FREQUENCY : odd_lines(block_lines * across * v_tile);
    v_slab = odd_lines(FREQUENCIES * v_frequency);
    shared = quotient_up(in, slab) * v_slab;
    m_tile = odd_lines(FREQUENCIES * PANEL);
    row = odd_lines((across * TILE + 2) * RING_PIXEL);
    member = POINTS * U_FREQUENCY + tiles * m_tile + POINTS * row;
  }

  int64_t bytes(int64_t threads) const { return (shared + threads * member) * 4; }

  // Where input channel k begins in V.
  int64_t v_channel(int64_t k) const { return k / slab * v_slab + k % slab; }
};

// What one member writes to.
struct Scratch {
  float *v, *u, *m, *ring;

  Scratch(const Blocks& blocks, char* scratch, int64_t member) {
    v = reinterpret_cast<float*>(scratch);
    u = v + blocks.shared + member * blocks.member;
    m = u + POINTS * U_FREQUENCY;
    ring = u + blocks.member - POINTS * blocks.row;
  }
};

}  // namespace
