// The products of one row block, more tiles than registers hold: U of two rows of frequencies for
// one group of input channels lives in the first cache.
#pragma once

#include "multiply_many.h"

namespace {

// Asks for the weights of the next group of input channels, an equal part by each frequency.
template <int WIDTH, typename Number>
struct NextGroup {
  static constexpr int64_t BYTES = GROUP * TAPS * LANES * int64_t{sizeof(Number)};  // of a vector
  static constexpr int64_t STEPS_OF_VECTOR = FREQUENCIES / WIDTH;
  static constexpr int64_t LINES = quotient_up(BYTES, LINE* STEPS_OF_VECTOR);

  const char* from;
  int64_t vector;  // bytes

  [[gnu::always_inline]] void operator()(int64_t frequency) const {
    const char* const at =
        from + frequency / STEPS_OF_VECTOR * vector + frequency % STEPS_OF_VECTOR * LINES * LINE;
#pragma GCC unroll 8
    for (int64_t line = 0; line < LINES; ++line) __builtin_prefetch(at + line * LINE, 0, 2);
  }
};

// The six frequencies of row `row` for ROWS tiles and GROUP input channels.
template <int ROWS, int WIDTH, typename Ahead>
[[gnu::noinline]] static void multiply_group(const float* v, int64_t v_frequency, const float* u,
                                             float* m, int64_t m_tile, bool begin, int row,
                                             const Ahead& ahead) {
  for (int64_t j = 0; j < POINTS; ++j, v += v_frequency, u += THIN_FREQUENCY, m += PANEL) {
    f32 sum[ROWS][WIDTH];
    load_sums(m, m_tile, begin, sum);
    ahead(row * POINTS + j);
    add_group(v, u, sum);
    store_sums(sum, m, m_tile);
  }
}

// Rows ROW... for input channels [first, first + GROUP).
template <int WIDTH, typename Number, int... ROW>
static inline void multiply_thin_rows(const Piece& piece, int64_t first) {
  const Blocks& blocks = piece.blocks;
  const Number* const g = piece.weights<Number>(0, first);
  const int64_t g_vector = blocks.in * TAPS * LANES;
  float* u = piece.scratch.u;
  transform_rows<WIDTH, ROW...>(g, g_vector, GROUP, u, THIN_FREQUENCY);
  const NextGroup<WIDTH, Number> ahead = {reinterpret_cast<const char*>(g + GROUP * TAPS * LANES),
                                          g_vector * int64_t{sizeof(Number)}};
  const auto multiply_row = [&](int row) {
    with_rows(piece.tiles, [&](auto tiles) {
      multiply_group<decltype(tiles)::value, WIDTH>(piece.v_of(row, first), blocks.v_frequency, u,
                                                    piece.m(row), blocks.m_tile, first == 0, row,
                                                    ahead);
    });
    u += POINTS * THIN_FREQUENCY;
  };
  (multiply_row(ROW), ...);
}

template <int WIDTH, typename Number>
static void multiply_thin(Piece& piece) {
  const int64_t in = piece.blocks.in;
  int64_t first = 0;
  for (; first + GROUP <= in; first += GROUP) {
    multiply_thin_rows<WIDTH, Number, 0, 5>(piece, first);
    multiply_thin_rows<WIDTH, Number, 1, 2>(piece, first);
    multiply_thin_rows<WIDTH, Number, 3, 4>(piece, first);
  }
  if (first < in) multiply_many_rows<WIDTH, Number>(piece, first, in - first);
}

}  // namespace
