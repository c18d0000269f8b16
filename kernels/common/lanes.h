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
