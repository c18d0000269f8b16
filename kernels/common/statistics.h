// Mean and squared deviations of each channel over a strip of a map.
//
//     mean = m + sum_p (x - m) / n,   M2 = sum_p (x - m)^2 - (sum_p (x - m))^2 / n,   m ~ sum_p x /
//     n
//
// The corrected two-pass algorithm (Chan, Golub, LeVeque 1983, equation 1.7): what m lacks by
// rounding is made up for. Pixels are added row by row, one chain each, and then the rows.
#pragma once

#include "../include/fastddpm.h"
#include "simd.h"
#include "team.h"

namespace {

constexpr int64_t STRIP = 4;  // rows

static inline int64_t strips_of(int64_t height) { return (height + STRIP - 1) / STRIP; }

// Rows of a strip: the last may have fewer.
static inline int64_t rows_of(int64_t strip, int64_t height) {
  const int64_t left = height - strip * STRIP;
  return left < STRIP ? left : STRIP;
}

// COUNT vectors of channels that begin at `from`; mean and deviations: where they are written.
template <int COUNT>
static inline void vectors_statistics(const float* from, int64_t stride, int64_t rows,
                                      int64_t width, float* mean, float* deviations) {
  const f32 share = broadcast(1.0f / static_cast<float>(rows * width));
  f32 about[COUNT] = {}, rest[COUNT] = {}, squares[COUNT] = {};
  for (int64_t row = 0; row < rows; ++row) {
    f32 sum[COUNT] = {};
    for (int64_t p = row * width; p < (row + 1) * width; ++p) {
      for (int v = 0; v < COUNT; ++v) sum[v] = sum[v] + load(from + p * stride + v * LANES);
    }
    for (int v = 0; v < COUNT; ++v) about[v] = about[v] + sum[v];
  }
  for (int v = 0; v < COUNT; ++v) about[v] = about[v] * share;
  for (int64_t row = 0; row < rows; ++row) {
    f32 sum[COUNT] = {}, square[COUNT] = {};
    for (int64_t p = row * width; p < (row + 1) * width; ++p) {
      for (int v = 0; v < COUNT; ++v) {
        const f32 d = load(from + p * stride + v * LANES) - about[v];
        sum[v] = sum[v] + d;
        square[v] = multiply_add(d, d, square[v]);
      }
    }
    for (int v = 0; v < COUNT; ++v) {
      rest[v] = rest[v] + sum[v];
      squares[v] = squares[v] + square[v];
    }
  }
  for (int v = 0; v < COUNT; ++v) {
    store(mean + v * LANES, multiply_add(rest[v], share, about[v]));
    const f32 m2 = squares[v] - rest[v] * rest[v] * share;
    store(deviations + v * LANES, m2 < 0.0f ? f32{} : m2);
  }
}

// Channels [first, end) of one strip: `from` is its first pixel, `to` its [2, stride] statistics.
// Whole vectors are read and written.
static inline void strip_statistics(const float* from, int64_t stride, int64_t rows, int64_t width,
                                    int64_t first, int64_t end, float* to) {
  int64_t c = first;
  for (; c + 4 * LANES <= end; c += 4 * LANES) {
    vectors_statistics<4>(from + c, stride, rows, width, to + c, to + stride + c);
  }
  for (; c < end; c += LANES) {
    vectors_statistics<1>(from + c, stride, rows, width, to + c, to + stride + c);
  }
}

// The statistics of a whole map, which lies finished before the team.
static void write_statistics(const fastddpm_statistics& a, const fastddpm::Team& team) {
  // Channels that one piece takes: few enough that a small map has a piece for everybody.
  constexpr int64_t GROUP = 64;
  const int64_t strips = strips_of(a.height), groups = (a.channels + GROUP - 1) / GROUP;
  const int64_t pieces = a.batch * strips * groups;
  team.share(pieces, [&](int64_t piece) {
    const int64_t first = piece % groups * GROUP, strip = piece / groups % strips;
    const int64_t sample = piece / groups / strips;
    const int64_t end = first + GROUP < a.channels ? first + GROUP : a.channels;
    const int64_t pixel = (sample * a.height + strip * STRIP) * a.width;
    strip_statistics(a.data + pixel * a.stride, a.stride, rows_of(strip, a.height), a.width, first,
                     end, a.statistics + piece / groups * 2 * a.stride);
  });
}

}  // namespace
