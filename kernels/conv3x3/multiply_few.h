// The products of few tiles, whose weights are transformed in registers as they are used.
#pragma once

#include "piece.h"

namespace {

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

}  // namespace
