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

// Tiles of a piece: the weights' transform is shared by so many, and M and U fit in 1 MB.
constexpr int64_t PIECE_TILES = 64;
// Input channels whose V lies together and whose U is a piece's: 32 KB of a panel for a frequency.
constexpr int64_t SLAB = 256;
constexpr int64_t U_FREQUENCY = SLAB * PANEL + 16;  // floats between two frequencies of U
// So few tiles are multiplied in registers, REGISTER_TILES at a time (32 vectors or 16); distances
// between two tiles and two frequencies of V are constants then.
constexpr int64_t FEW = 8;
constexpr int REGISTER_TILES = VECTORS * MAX_ROWS >= 24 ? 4 : 2;
constexpr int64_t FEW_TILE = SLAB + 16, FEW_FREQUENCY = (FEW * FEW_TILE / 16 | 1) * 16;
// Input channels that are normalised and transformed together.
constexpr int64_t CHUNK = 64;
// Floats between two pixels of the ring: a chunk, and what a last vector writes beyond it.
constexpr int64_t RING_PIXEL = CHUNK + 16;
// Lines that are transformed together: 2 of 4 n + 2 rows of pixels are read twice.
constexpr int64_t RUN_LINES = 8;
constexpr int64_t BLOCK_BYTES = 8 << 20;

// The least number of floats for `count` that is an odd number of cache lines: no two rows of so
// many floats meet in one set of a cache more often than they must.
static inline int64_t odd_lines(int64_t count) { return (round_up(count, 16) / 16 | 1) * 16; }

static inline int64_t quotient_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

struct Blocks {
  int64_t in, panels;
  int64_t across, strips;  // tiles of a line, lines of an image
  int64_t lines;           // of all images
  int64_t piece_lines, block_lines;
  int64_t slab;                         // input channels that lie together in V
  int64_t depth;                        // input channels whose weights are transformed at a time
  int64_t v_tile, v_frequency, v_slab;  // floats between two tiles, frequencies, slabs
  int64_t m_tile;
  bool few;        // tiles are few enough for their sums of six frequencies to live in registers
  int64_t shared;  // floats of V
  int64_t row;     // of a row of pixels in the ring
  int64_t member;  // of U, M and the ring of one member

  Blocks(const fastddpm_conv3x3& conv, int64_t threads) {
    in = all_channels(conv.x);
    panels = panels_of(conv.y.channels);
    across = quotient_up(conv.width, TILE);
    strips = quotient_up(conv.height, TILE);
    lines = conv.batch * strips;
    piece_lines = smaller(lines, larger(1, PIECE_TILES / across));
    // A panel for everyone, or fewer tiles a piece.
    const int64_t cuts = smaller(lines, quotient_up(threads, panels));
    piece_lines = smaller(piece_lines, quotient_up(lines, cuts));
    const int64_t tiles = piece_lines * across;
    slab = smaller(in, round_up(quotient_up(in, quotient_up(in, SLAB)), CHUNK));
    const bool transformed = conv.packing == FASTDDPM_PACKING_TRANSFORMED;
    few = lines * across <= FEW && !transformed;
    depth = smaller(slab, few ? 64 : tiles < 16 && !transformed ? 512 / PANEL : SLAB);
    v_tile = few ? FEW_TILE : odd_lines(slab);
    const int64_t slabs = quotient_up(in, slab);
    const int64_t line_bytes = slabs * FREQUENCIES * across * v_tile * 4;
    const int64_t most =
        larger(piece_lines * cuts, BLOCK_BYTES / line_bytes / piece_lines * piece_lines);
    block_lines = smaller(lines, most);
    v_frequency = few ? FEW_FREQUENCY : odd_lines(block_lines * across * v_tile);
    v_slab = odd_lines(FREQUENCIES * v_frequency);
    shared = slabs * v_slab;
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
