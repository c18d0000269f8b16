// The products of a piece, M += V U: U, transformed from nine numbers a weight, lives in the cache
// or, for few tiles, in registers.
#pragma once

#include "blocks.h"

namespace {

// The part of a convolution that one member multiplies: a panel of output channels by some tiles.
struct Piece {
  const Blocks& blocks;
  const Scratch& scratch;
  const void* panel;  // packed weights
  int64_t tiles;
  const float* v;  // of the first tile

  float* m(int row) const { return scratch.m + row * POINTS * PANEL; }
  const float* v_of(int row, int64_t channel) const {
    return v + blocks.v_channel(channel) + row * POINTS * blocks.v_frequency;
  }
  // The nine numbers of one vector of output channels.
  template <typename Number>
  const Number* weights(int64_t vector, int64_t channel) const {
    const int64_t scale = sizeof(Number) == 2 ? PANEL * 4 : 0;
    return reinterpret_cast<const Number*>(static_cast<const char*>(panel) + scale) +
           (vector * blocks.in + channel) * TAPS * LANES;
  }
};

// For the six frequencies of row ROW and input channels [first, end); u [6][end - first][PANEL].
template <int WIDTH>
static void multiply_row(const Piece& piece, int row, int64_t first, int64_t end, const float* u,
                         int64_t u_frequency) {
  const int64_t v_tile = piece.blocks.v_tile, m_tile = piece.blocks.m_tile;
  for (int64_t j = 0; j < POINTS; ++j, u += u_frequency) {
    const float* const v = piece.v_of(row, first) + j * piece.blocks.v_frequency;
    float* const m = piece.m(row) + j * PANEL;
    for_row_blocks(piece.tiles, [&](auto rows, int64_t tile) {
      constexpr int ROWS = decltype(rows)::value;
      float* const to = m + tile * m_tile;
      f32 sum[ROWS][WIDTH] = {};
      if (first > 0) {
        for (int r = 0; r < ROWS; ++r) {
          for (int w = 0; w < WIDTH; ++w) sum[r][w] = load(to + r * m_tile + w * LANES);
        }
      }
      multiply_panel(v + tile * v_tile, v_tile, u, end - first, sum);
      for (int r = 0; r < ROWS; ++r) {
        for (int w = 0; w < WIDTH; ++w) store(to + r * m_tile + w * LANES, sum[r][w]);
      }
    });
  }
}

// Input channels [first, first + count): one row after the other transformed and multiplied.
template <int WIDTH, typename Number, int ROW = 0>
static inline void multiply_many_rows(const Piece& piece, int64_t first, int64_t count) {
  float* const u = piece.scratch.u;
  for (int w = 0; w < WIDTH; ++w) {
    transform_row<ROW>(piece.weights<Number>(w, first), count, u + w * LANES, PANEL, U_FREQUENCY);
  }
  multiply_row<WIDTH>(piece, ROW, first, first + count, u, U_FREQUENCY);
  if constexpr (ROW + 1 < POINTS) multiply_many_rows<WIDTH, Number, ROW + 1>(piece, first, count);
}

template <int WIDTH, typename Number>
static void multiply_many(const Piece& piece) {
  const int64_t in = piece.blocks.in, depth = piece.blocks.depth;
  for (int64_t first = 0; first < in; first += depth) {
    multiply_many_rows<WIDTH, Number>(piece, first, smaller(depth, in - first));
  }
}

template <int WIDTH>
static void multiply_transformed(const Piece& piece) {
  const int64_t in = piece.blocks.in, depth = piece.blocks.depth;
  for (int row = 0; row < POINTS; ++row) {
    for (int64_t first = 0; first < in; first += depth) {
      const float* u = static_cast<const float*>(piece.panel) + (row * POINTS * in + first) * PANEL;
      multiply_row<WIDTH>(piece, row, first, smaller(first + depth, in), u, in * PANEL);
    }
  }
}

// TILES tiles in registers: row ROW for LANES output channels and `count` input channels.
template <int ROW, int TILES, typename Number>
static inline void multiply_in_registers(const Number* g, int64_t count, int64_t depth,
                                         const float* v, float* m, int64_t m_tile, bool begin) {
  f32 sum[TILES][POINTS];
#pragma GCC unroll 4
  for (int t = 0; t < TILES; ++t) {
#pragma GCC unroll 6
    for (int j = 0; j < POINTS; ++j) sum[t][j] = begin ? f32{} : load(m + t * m_tile + j * PANEL);
  }
  for (int64_t k = 0; k < count; ++k, ++v, g += TAPS * LANES) {
    // What the next call for this row reads, a sixth of it by each row: memory is what few tiles
    // wait for.
    const Number* const next = g + depth * TAPS * LANES;
    __builtin_prefetch(next + ROW * LANES, 0, 2);
    if (ROW < TAPS - POINTS) __builtin_prefetch(next + (ROW + POINTS) * LANES, 0, 2);
    f32 u[POINTS];
    transform_weights<ROW>([&](int tap) { return number(g + tap * LANES); }, u);
#pragma GCC unroll 6
    for (int j = 0; j < POINTS; ++j) {
#pragma GCC unroll 4
      for (int t = 0; t < TILES; ++t) {
        const f32 value = broadcast(v[j * FEW_FREQUENCY + t * FEW_TILE]);
        sum[t][j] = multiply_add(value, u[j], sum[t][j]);
      }
    }
  }
#pragma GCC unroll 4
  for (int t = 0; t < TILES; ++t) {
#pragma GCC unroll 6
    for (int j = 0; j < POINTS; ++j) store(m + t * m_tile + j * PANEL, sum[t][j]);
  }
}

template <typename Number, int ROW = 0>
static inline void multiply_few_rows(const Piece& piece, int64_t vector, int64_t first,
                                     int64_t count) {
  const Number* const g = piece.weights<Number>(vector, first);
  const int64_t m_tile = piece.blocks.m_tile, groups = quotient_up(piece.tiles, REGISTER_TILES);
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t tile = piece.tiles * group / groups;
    with_rows<REGISTER_TILES>(piece.tiles * (group + 1) / groups - tile, [&](auto tiles) {
      multiply_in_registers<ROW, decltype(tiles)::value>(
          g, count, piece.blocks.depth, piece.v_of(ROW, first) + tile * FEW_TILE,
          piece.m(ROW) + vector * LANES + tile * m_tile, m_tile, first == 0);
    });
  }
  if constexpr (ROW + 1 < POINTS) {
    multiply_few_rows<Number, ROW + 1>(piece, vector, first, count);
  }
}

// Few tiles: all rows for a chunk of input channels, whose weights stay in L1 meanwhile.
template <int WIDTH, typename Number>
static void multiply_few(const Piece& piece) {
  const int64_t in = piece.blocks.in, depth = piece.blocks.depth;
  for (int64_t vector = 0; vector < WIDTH; ++vector) {
    for (int64_t first = 0; first < in; first += depth) {
      multiply_few_rows<Number>(piece, vector, first, smaller(depth, in - first));
    }
  }
}

template <int WIDTH>
static void multiply(const Piece& piece, int64_t packing) {
  if (packing == FASTDDPM_PACKING_TRANSFORMED) {
    multiply_transformed<WIDTH>(piece);
  } else if (packing == FASTDDPM_PACKING_FLOAT16) {
    piece.blocks.few ? multiply_few<WIDTH, uint16_t>(piece) : multiply_many<WIDTH, uint16_t>(piece);
  } else {
    piece.blocks.few ? multiply_few<WIDTH, float>(piece) : multiply_many<WIDTH, float>(piece);
  }
}

}  // namespace
