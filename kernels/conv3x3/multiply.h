// The products of a piece, M += V U: U, transformed from nine numbers a weight, lives in the cache
// or, for few tiles, in registers.
#pragma once

#include "blocks.h"

namespace {

// Asks for the weights of the next piece, evenly over all steps k of all products of this one, so
// that they arrive from memory while the units multiply: two lines of the cache in each group, and
// the lines between are left to the hardware. That is all nine numbers of a weight if there are two
// blocks of tiles or more, and all of the 36 of TRANSFORMED from eight blocks on.
struct Upcoming {
  const char* from;
  int64_t step;  // bytes

  [[gnu::always_inline]] void operator()(int64_t k) const {
    __builtin_prefetch(from + k * step, 0, 2);
    __builtin_prefetch(from + (k + GROUP / 2) * step, 0, 2);
  }
  Upcoming after(int64_t count) const { return {from + count * step, step}; }
};

// The part of a convolution that one member multiplies: a panel of output channels by some tiles.
struct Piece {
  const Blocks& blocks;
  const Scratch& scratch;
  const void* panel;  // packed weights
  int64_t tiles;
  const float* v;  // of the first tile
  Upcoming upcoming;

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

// A group's steps that follow one another without a branch. Where rows can be multiplied by a lane
// of a register, the compiler would keep vectors of them and run out of registers.
#if defined(__AVX2__)
constexpr int STEPS = GROUP;
#else
constexpr int STEPS = 1;
#endif

// A row block of one frequency, ROWS tiles, added to m unless they begin it: v [depth / GROUP]
// [ROWS][GROUP], v_group floats between groups. Not inline: of AVX2 sums and addresses take all
// registers.
template <int ROWS, int WIDTH>
[[gnu::noinline]] static void multiply_tiles(const float* v, int64_t v_group, const float* u,
                                             int64_t depth, float* m, int64_t m_tile, bool begin,
                                             const Upcoming& upcoming) {
  f32 sum[ROWS][WIDTH];
#pragma GCC unroll 14
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 4
    for (int w = 0; w < WIDTH; ++w) sum[r][w] = begin ? f32{} : load(m + r * m_tile + w * LANES);
  }
  int64_t k = 0;
  for (; k + GROUP <= depth; k += GROUP, v += v_group, u += GROUP * PANEL) {
    upcoming(k);
#pragma GCC unroll STEPS
    for (int at = 0; at < GROUP; ++at) {
      add_products([&](int r) { return v[r * GROUP + at]; }, u + at * PANEL, sum);
    }
  }
#pragma GCC unroll 1
  for (; k < depth; ++k, ++v, u += PANEL) {
    add_products([&](int r) { return v[r * GROUP]; }, u, sum);
  }
#pragma GCC unroll 14
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 4
    for (int w = 0; w < WIDTH; ++w) store(m + r * m_tile + w * LANES, sum[r][w]);
  }
}

// For the six frequencies of row ROW and input channels [first, end); u [6][end - first][PANEL].
template <int WIDTH>
static void multiply_row(Piece& piece, int row, int64_t first, int64_t end, const float* u,
                         int64_t u_frequency) {
  const Blocks& blocks = piece.blocks;
  const int64_t depth = end - first;
  for (int64_t j = 0; j < POINTS; ++j, u += u_frequency) {
    const float* v = piece.v_of(row, first) + j * blocks.v_frequency;
    float* const m = piece.m(row) + j * PANEL;
    for (int64_t block = 0, tile = 0; block < blocks.row_blocks; ++block, v += blocks.v_rows) {
      const int64_t after = piece.tiles * (block + 1) / blocks.row_blocks;
      if (after == tile) continue;
      with_rows(after - tile, [&](auto rows) {
        multiply_tiles<decltype(rows)::value, WIDTH>(v, blocks.v_group, u, depth,
                                                     m + tile * blocks.m_tile, blocks.m_tile,
                                                     first == 0, piece.upcoming);
      });
      piece.upcoming = piece.upcoming.after(depth);
      tile = after;
    }
  }
}

// Input channels [first, first + count): one row of frequencies after the other transformed and
// multiplied. Rows of +-p and of +-q have work in common, but two rows of U crowd the cache.
template <int WIDTH, typename Number, int ROW = 0>
static inline void multiply_many_rows(Piece& piece, int64_t first, int64_t count) {
  float* const u = piece.scratch.u;
  const Number* const g = piece.weights<Number>(0, first);
  const int64_t g_vector = piece.blocks.in * TAPS * LANES;
  transform_row<ROW, WIDTH>(g, g_vector, count, u, U_FREQUENCY);
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

// TILES tiles in registers: frequencies [FIRST, FIRST + COUNT) of row ROW for LANES output channels
// and `count` input channels. ahead: floats or halves from g to what is needed next. Not inline:
// the sums of one must not compete for registers with another's.
template <int ROW, int FIRST, int COUNT, int TILES, typename Number>
[[gnu::noinline]] static void multiply_in_registers(const Number* g, int64_t ahead, int64_t count,
                                                    const float* v, float* m, int64_t m_tile,
                                                    bool begin) {
  constexpr int64_t LINES = (TAPS * LANES * int64_t{sizeof(Number)} + LINE - 1) / LINE;
  f32 sum[TILES][COUNT];
#pragma GCC unroll 8
  for (int t = 0; t < TILES; ++t) {
#pragma GCC unroll 6
    for (int j = 0; j < COUNT; ++j) {
      sum[t][j] = begin ? f32{} : load(m + t * m_tile + (FIRST + j) * PANEL);
    }
  }
  for (int64_t k = 0; k < count; ++k, ++v, g += TAPS * LANES) {
    // Memory is what few tiles wait for: each row asks for a sixth of the cache lines.
#pragma GCC unroll 2
    for (int64_t line = ROW; FIRST == 0 && line < LINES; line += POINTS) {
      __builtin_prefetch(reinterpret_cast<const char*>(g + ahead) + line * LINE, 0, 2);
    }
    const auto tap = [&](int at) { return number(g + at * LANES); };
    transform_weights<ROW>(tap, [&](int j, f32 u) {
      if (j < FIRST || j >= FIRST + COUNT) return;
#pragma GCC unroll 8
      for (int t = 0; t < TILES; ++t) {
        const f32 value = broadcast(v[j * FEW_FREQUENCY + t * FEW_TILE]);
        sum[t][j - FIRST] = multiply_add(value, u, sum[t][j - FIRST]);
      }
    });
  }
#pragma GCC unroll 8
  for (int t = 0; t < TILES; ++t) {
#pragma GCC unroll 6
    for (int j = 0; j < COUNT; ++j) store(m + t * m_tile + (FIRST + j) * PANEL, sum[t][j]);
  }
}

template <typename Number, int ROW = 0>
static inline void multiply_few_rows(const Piece& piece, int64_t vector, int64_t first,
                                     int64_t count) {
  const Number* const g = piece.weights<Number>(vector, first);
  const int64_t ahead = piece.blocks.depth * TAPS * LANES, m_tile = piece.blocks.m_tile;
  const float* const v = piece.v_of(ROW, first);
  float* const m = piece.m(ROW) + vector * LANES;
  with_rows<FEW>(piece.tiles, [&](auto tiles) {
    constexpr int TILES = decltype(tiles)::value;
    constexpr int COUNT = TILES * POINTS <= REGISTER_SUMS ? POINTS : POINTS / 2;
    multiply_in_registers<ROW, 0, COUNT, TILES>(g, ahead, count, v, m, m_tile, first == 0);
    if constexpr (COUNT < POINTS) {
      multiply_in_registers<ROW, COUNT, COUNT, TILES>(g, ahead, count, v, m, m_tile, first == 0);
    }
  });
  if constexpr (ROW + 1 < POINTS) multiply_few_rows<Number, ROW + 1>(piece, vector, first, count);
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
static void multiply(Piece& piece, int64_t packing) {
  if (packing == FASTDDPM_PACKING_TRANSFORMED) {
    multiply_transformed<WIDTH>(piece);
  } else if (packing == FASTDDPM_PACKING_FLOAT16) {
    piece.blocks.few ? multiply_few<WIDTH, uint16_t>(piece) : multiply_many<WIDTH, uint16_t>(piece);
  } else {
    piece.blocks.few ? multiply_few<WIDTH, float>(piece) : multiply_many<WIDTH, float>(piece);
  }
}

}  // namespace
