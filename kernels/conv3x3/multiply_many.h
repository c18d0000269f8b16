// The products of many tiles: U of a row of frequencies, for a whole slab of input channels, lives
// in the second cache.
#pragma once

#include "piece.h"

namespace {

// `count` row blocks of ROWS tiles each, one frequency, added to m unless they begin it:
// v [depth / GROUP][ROWS][GROUP], v_group floats between groups and v_rows between row blocks. Not
// inline: of AVX2 sums and addresses take all registers.
template <int ROWS, int WIDTH>
[[gnu::noinline]] static void multiply_tiles(const float* v, const Blocks& blocks, int64_t count,
                                             const float* u, int64_t depth, float* m, bool begin,
                                             Upcoming upcoming) {
  const int64_t v_group = blocks.v_group, v_rows = blocks.v_rows, m_tile = blocks.m_tile;
  for (int64_t block = 0; block < count; ++block, v += v_rows, m += ROWS * m_tile) {
    const float *at = v, *weights = u;
    f32 sum[ROWS][WIDTH];
    load_sums(m, m_tile, begin, sum);
    int64_t k = 0;
    for (; k + GROUP <= depth; k += GROUP, at += v_group, weights += GROUP * PANEL) {
      upcoming(k);
      add_group(at, weights, sum);
    }
#pragma GCC unroll 1
    for (; k < depth; ++k, ++at, weights += PANEL) {
      add_products([&](int r) { return at[r * GROUP]; }, weights, sum);
    }
    store_sums(sum, m, m_tile);
    upcoming = upcoming.after(depth);
  }
}

// For frequencies [from, to) of row `row` and input channels [first, end);
// u [6][end - first][PANEL].
template <int WIDTH>
static void multiply_row(Piece& piece, int row, int64_t first, int64_t end, const float* u,
                         int64_t u_frequency, int64_t from = 0, int64_t to = POINTS) {
  const Blocks& blocks = piece.blocks;
  const int64_t depth = end - first;
  const RowBlocks parts(piece.tiles, blocks.rows);
  u += from * u_frequency;
  for (int64_t j = from; j < to; ++j, u += u_frequency) {
    const float* v = piece.v_of(row, first) + j * blocks.v_frequency;
    float* m = piece.m(row) + j * PANEL;
    const auto multiply_blocks = [&](int64_t count, int64_t rows) {
      with_rows(rows, [&](auto exactly) {
        multiply_tiles<decltype(exactly)::value, WIDTH>(v, blocks, count, u, depth, m, first == 0,
                                                        piece.upcoming);
      });
      piece.upcoming = piece.upcoming.after(count * depth);
      v += count * blocks.v_rows;
      m += count * rows * blocks.m_tile;
    };
    multiply_blocks(parts.larger, parts.rows);
    if (parts.larger < parts.count) multiply_blocks(parts.count - parts.larger, parts.rows - 1);
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
