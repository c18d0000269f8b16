// How a convolution is cut into pieces, and where its scratch numbers lie.
//
// A line is a row of tiles: 4 rows of pixels of one image, a strip of the statistics. Lines of all
// images follow one another. A block of lines is transformed into V, which the team shares; then
// each piece, a panel of output channels by some lines of the block, is multiplied by one member:
//
//     V [36][tiles of a block][in]    U [6][depth][PANEL]    M [36][tiles of a piece][PANEL]
//
// None of this changes a result: every sum runs over the input channels in their order.
#pragma once

#include "../common/input.h"
#include "packing.h"

namespace {

// Tiles of a piece: the weights' transform is shared by so many, and M and U fit in 1 MB.
constexpr int64_t PIECE_TILES = 64;
// Input channels that are normalised and transformed together.
constexpr int64_t CHUNK = 64;
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
  int64_t depth;                // input channels whose weights are transformed at a time
  int64_t v_tile, v_frequency;  // floats between two tiles, two frequencies
  int64_t u_frequency, m_frequency;
  int64_t row;     // floats of a row of pixels in the ring
  int64_t member;  // floats of U, M and the ring of one member

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
    v_tile = odd_lines(in + 15);  // whole vectors are written from any channel on
    const int64_t line_bytes = FREQUENCIES * across * v_tile * 4;
    const int64_t most =
        larger(piece_lines * cuts, BLOCK_BYTES / line_bytes / piece_lines * piece_lines);
    block_lines = smaller(lines, most);
    v_frequency = odd_lines(block_lines * across * v_tile);
    const int64_t tiles = piece_lines * across;
    depth = conv.packing == FASTDDPM_PACKING_TRANSFORMED ? 512 : tiles < 16 ? 32 : 256;
    depth = smaller(depth, in);
    u_frequency = odd_lines(depth * PANEL);
    m_frequency = odd_lines(tiles * PANEL);
    row = odd_lines((across * TILE + 2) * CHUNK);
    member = POINTS * u_frequency + FREQUENCIES * m_frequency + POINTS * row;
  }

  int64_t shared() const { return FREQUENCIES * v_frequency; }
  int64_t bytes(int64_t threads) const { return (shared() + threads * member) * 4; }
};

// What one member writes to.
struct Scratch {
  float *v, *u, *m, *ring;

  Scratch(const Blocks& blocks, char* scratch, int64_t member) {
    v = reinterpret_cast<float*>(scratch);
    u = v + blocks.shared() + member * blocks.member;
    m = u + POINTS * blocks.u_frequency;
    ring = m + FREQUENCIES * blocks.m_frequency;
  }
};

}  // namespace
