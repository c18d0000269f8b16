// Mean and squared deviations of each channel over strips of 4 rows of a map, in two passes:
//
//     mean = x_0 + sum_p (x_p - x_0) / n,   M2 = sum_p (x_p - mean)^2      p in the pixels' order
//
// [B, strips, 2, stride], strips = ceil(H / 4). A strip's numbers depend on nothing but its pixels.
#pragma once

#include "../include/fastddpm.h"
#include "simd.h"
#include "team.h"

namespace {

constexpr int64_t STRIP = 4;      // rows
constexpr int STRIP_VECTORS = 4;  // channels / LANES whose sums run side by side

static inline int64_t strips_of(int64_t height) { return (height + STRIP - 1) / STRIP; }

// COUNT vectors of channels of `pixels` pixels, the first at `from`.
template <int COUNT>
static inline void strip_sums(const float* from, int64_t stride, int64_t pixels, float* mean,
                              float* squares) {
  f32 first[COUNT], sum[COUNT] = {}, square[COUNT] = {};
  for (int v = 0; v < COUNT; ++v) first[v] = load(from + v * LANES);
  for (int64_t p = 1; p < pixels; ++p) {
    for (int v = 0; v < COUNT; ++v) {
      sum[v] = sum[v] + (load(from + p * stride + v * LANES) - first[v]);
    }
  }
  for (int v = 0; v < COUNT; ++v) sum[v] = first[v] + sum[v] / static_cast<float>(pixels);
  for (int64_t p = 0; p < pixels; ++p) {
    for (int v = 0; v < COUNT; ++v) {
      const f32 deviation = load(from + p * stride + v * LANES) - sum[v];
      square[v] = multiply_add(deviation, deviation, square[v]);
    }
  }
  for (int v = 0; v < COUNT; ++v) {
    store(mean + v * LANES, sum[v]);
    store(squares + v * LANES, square[v]);
  }
}

// All strips of a map that lies finished before the team; a barrier must stand before it.
static inline void write_statistics(const fastddpm_statistics& s, const fastddpm::Team& team) {
  const int64_t strips = strips_of(s.height), vectors = (s.channels + LANES - 1) / LANES;
  const int64_t groups = (vectors + STRIP_VECTORS - 1) / STRIP_VECTORS;
  const int64_t pieces = s.batch * strips * groups;
  for (int64_t piece = team.claim(); piece < pieces; piece = team.claim()) {
    const int64_t first = piece % groups * STRIP_VECTORS, strip = piece / groups % strips;
    const int64_t sample = piece / groups / strips;
    const int64_t rows = s.height - strip * STRIP < STRIP ? s.height - strip * STRIP : STRIP;
    const float* from = s.data + (sample * s.height + strip * STRIP) * s.width * s.stride;
    float* mean = s.statistics + (sample * strips + strip) * 2 * s.stride;
    const bool whole = vectors - first >= STRIP_VECTORS;
    for (int64_t v = first; v < (whole ? first + 1 : vectors); ++v) {
      const int64_t c = v * LANES;
      if (whole) {
        strip_sums<STRIP_VECTORS>(from + c, s.stride, rows * s.width, mean + c,
                                  mean + s.stride + c);
      } else {
        strip_sums<1>(from + c, s.stride, rows * s.width, mean + c, mean + s.stride + c);
      }
    }
  }
}

}  // namespace
