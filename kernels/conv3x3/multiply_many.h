// The products of many tiles: U of a row of frequencies, for a whole slab of input channels, lives
// in the second cache.
#pragma once

#include "piece.h"

namespace {

// A row block of one frequency, ROWS tiles, added to m unless they begin it: v [depth / GROUP]
// [ROWS][GROUP], v_group floats between groups. Not inline: of AVX2 sums and addresses take all
// registers.
template <int ROWS, int WIDTH>
[[gnu::noinline]] static void multiply_tiles(const float* v, int64_t v_group, const float* u,
                                             int64_t depth, float* m, int64_t m_tile, bool begin,
                                             const Upcoming& upcoming) {
  f32 sum[ROWS][WIDTH];
  load_sums(m, m_tile, begin, sum);
  int64_t k = 0;
  for (; k + GROUP <= depth; k += GROUP, v += v_group, u += GROUP * PANEL) {
    upcoming(k);
    add_group(v, u, sum);
  }
#pragma GCC unroll 1
  for (; k < depth; ++k, ++v, u += PANEL) {
    add_products([&](int r) { return v[r * GROUP]; }, u, sum);
  }
  store_sums(sum, m, m_tile);
}

// For frequencies [from, to) of row `row` and input channels [first, end);
// u [6][end - first][PANEL].
template <int WIDTH>
static void multiply_row(Piece& piece, int row, int64_t first, int64_t end, const float* u,
                         int64_t u_frequency, int64_t from = 0, int64_t to = POINTS) {
  const Blocks& blocks = piece.blocks;
  const int64_t depth = end - first;
  u += from * u_frequency;
  for (int64_t j = from; j < to; ++j, u += u_frequency) {
    const float* v = piece.v_of(row, first) + j * blocks.v_frequency;
    float* const m = piece.m(row) + j * PANEL;
    const auto multiply_block = [&](auto rows, int64_t tile) {
      multiply_tiles<decltype(rows)::value, WIDTH>(v, blocks.v_group, u, depth,
                                                   m + tile * blocks.m_tile, blocks.m_tile,
                                                   first == 0, piece.upcoming);
      piece.upcoming = piece.upcoming.after(depth);
      v += blocks.v_rows;
    };
    for_row_blocks(piece.tiles, multiply_block, blocks.rows);
  }
}

// Input channels [first, first + count): one row of frequencies after the other transformed and
// multiplied. Rows of +-p and of +-q have work in common, but two rows of U crowd the cache.
template <int WIDTH, typename Number, int ROW = 0>
static inline void multiply_many_rows(Piece& piece, int64_t first, int64_t count) {
  float* const u = piece.scratch.u;
  const Number* const g = piece.weights<Number>(0, first);
  const int64_t g_vector = piece.blocks.in * TAPS * LANES;
  transform_rows<WIDTH, ROW>(g, g_vector, count, u, U_FREQUENCY);
  multiply_row<WIDTH>(piece, ROW, first, first + count, u, U_FREQUENCY);
  if constexpr (ROW + 1 < POINTS) multiply_many_rows<WIDTH, Number, ROW + 1>(piece, first, count);
}

template <int WIDTH, typename Number>
static void multiply_many(Piece& piece) {
  const int64_t in = piece.blocks.in, depth = piece.blocks.depth;
  for (int64_t first = 0; first < in; first += depth) {
    multiply_many_rows<WIDTH, Number>(piece, first, smaller(depth, in - first));
  }
}

template <int WIDTH>
static void multiply_transformed(Piece& piece) {
  const int64_t in = piece.blocks.in, depth = piece.blocks.depth;
  for (int row = 0; row < POINTS; ++row) {
    for (int64_t first = 0; first < in; first += depth) {
      const float* u = static_cast<const float*>(piece.panel) + (row * POINTS * in + first) * PANEL;
      multiply_row<WIDTH>(piece, row, first, smaller(first + depth, in), u, in * PANEL);
    }
  }
}

}  // namespace
