// Across the lanes of vectors: transposition, and one number from a vector.
#pragma once

#include <utility>

#include "simd.h"

namespace {

// Lane i of the result is lane CHOICE::of(i) of the 2 LANES that a and b have together.
template <typename CHOICE, int... I>
static inline f32 choose(f32 a, f32 b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, CHOICE::of(I)...);
}

template <typename CHOICE>
static inline f32 choose(f32 a, f32 b) {
  return choose<CHOICE>(a, b, std::make_integer_sequence<int, LANES>{});
}

// Lanes of a and b in turn, from lane FIRST of each.
template <int FIRST>
struct Zip {
  static constexpr int of(int i) { return FIRST + i / 2 + i % 2 * LANES; }
};

template <int DISTANCE>
struct Turn {
  static constexpr int of(int i) { return (i + DISTANCE) % LANES; }
};

// True in the first `count` lanes.
static inline i32 lanes_below(int64_t count) {
  i32 lane;
  for (int i = 0; i < LANES; ++i) lane[i] = i;
  return lane < static_cast<int32_t>(count);
}

// LANES rows become columns. Each round zips row i with row i + LANES / 2: it turns the bits of a
// number's place, (row, lane), by one, and after log2 LANES rounds row and lane are exchanged.
static inline void transpose(f32 (&rows)[LANES]) {
#pragma GCC unroll 4
  for (int round = 1; round < LANES; round *= 2) {
    f32 zipped[LANES];
#pragma GCC unroll 8
    for (int i = 0; i < LANES / 2; ++i) {
      zipped[2 * i] = choose<Zip<0>>(rows[i], rows[i + LANES / 2]);
      zipped[2 * i + 1] = choose<Zip<LANES / 2>>(rows[i], rows[i + LANES / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i) rows[i] = zipped[i];
  }
}

// `rows` rows of `count` numbers, LANES at most, one after the other: number k of each goes to the
// LANES numbers at place(k), 0 for rows that there are not.
template <typename Place>
static inline void transpose_rows(const float* from, int64_t rows, int64_t count,
                                  const Place& place) {
  constexpr int64_t AHEAD = 128;  // floats; so many rows are more than a cache foresees
  for (int64_t k = 0; k < count; k += LANES) {
    f32 block[LANES] = {};
    for (int64_t row = 0; row < rows; ++row) {
      const float* const at = from + row * count + k;
      __builtin_prefetch(at + AHEAD);
      block[row] = count - k < LANES ? load(at, count - k) : load(at);
    }
    transpose(block);
    for (int64_t i = 0; i < LANES && i < count - k; ++i) store(place(k + i), block[i]);
  }
}

template <int DISTANCE = LANES / 2>
static inline float sum_of_lanes(f32 v) {
  if constexpr (DISTANCE == 0) {
    return v[0];
  } else {
    return sum_of_lanes<DISTANCE / 2>(v + choose<Turn<DISTANCE>>(v, v));
  }
}

// A NaN may or may not be passed over.
template <int DISTANCE = LANES / 2>
static inline float greatest_lane(f32 v) {
  if constexpr (DISTANCE == 0) {
    return v[0];
  } else {
    return greatest_lane<DISTANCE / 2>(maximum(v, choose<Turn<DISTANCE>>(v, v)));
  }
}

}  // namespace
