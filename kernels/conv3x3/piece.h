// The part of a convolution that one member multiplies: a panel of output channels by some tiles.
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

// The sums of ROWS tiles of one frequency: those of M, or 0 where they begin.
template <int ROWS, int WIDTH>
[[gnu::always_inline]] static inline void load_sums(const float* m, int64_t m_tile, bool begin,
                                                    f32 (&sum)[ROWS][WIDTH]) {
#pragma GCC unroll 14
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 4
    for (int w = 0; w < WIDTH; ++w) sum[r][w] = begin ? f32{} : load(m + r * m_tile + w * LANES);
  }
}

template <int ROWS, int WIDTH>
[[gnu::always_inline]] static inline void store_sums(const f32 (&sum)[ROWS][WIDTH], float* m,
                                                     int64_t m_tile) {
#pragma GCC unroll 14
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 4
    for (int w = 0; w < WIDTH; ++w) store(m + r * m_tile + w * LANES, sum[r][w]);
  }
}

// The products of ROWS tiles for GROUP input channels, v [ROWS][GROUP], u [GROUP][PANEL].
template <int ROWS, int WIDTH>
[[gnu::always_inline]] static inline void add_group(const float* v, const float* u,
                                                    f32 (&sum)[ROWS][WIDTH]) {
#pragma GCC unroll STEPS
  for (int at = 0; at < GROUP; ++at) {
    add_products([&](int r) { return v[r * GROUP + at]; }, u + at * PANEL, sum);
  }
}

}  // namespace
