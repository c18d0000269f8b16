// The weights of a convolution, [out, in, kernel, kernel], as panels of output channels:
//
//     FLOAT32   [panels][depth][PANEL]
//     FLOAT16   [panels]{ scale [PANEL] float32, [depth][PANEL] binary16 }
//
// depth = taps x in; k = tap in + channel, in the order in which pixels are gathered. Beyond the
// last output channel stands 0.
#pragma once

#include "../common/half.h"
#include "../common/lanes.h"
#include "../common/rows_times_panel.h"
#include "../include/fastddpm.h"

namespace {

// The power of two that brings numbers of at most this magnitude below 2^15. NaN if one of them is
// not finite: all of the channel then is NaN.
static inline float half_scale(float largest) {
  if (!(largest <= 3.4028235e38f)) return __builtin_nanf("");
  int exponent = 0;
  __builtin_frexpf(largest, &exponent);
  exponent -= 15;
  return __builtin_ldexpf(1.0f, exponent < -100 ? -100 : exponent);
}

static inline int64_t panels_of(int64_t out_channels) { return (out_channels + PANEL - 1) / PANEL; }

static inline int64_t panel_bytes(int64_t depth, int64_t packing) {
  if (packing == FASTDDPM_PACKING_FLOAT32) return depth * PANEL * int64_t{sizeof(float)};
  return PANEL * int64_t{sizeof(float)} + depth * PANEL * int64_t{sizeof(uint16_t)};
}

static int64_t packed_bytes(int64_t out_channels, int64_t in_channels, int64_t kernel,
                            int64_t packing) {
  return panels_of(out_channels) * panel_bytes(in_channels * kernel * kernel, packing);
}

// One output channel, a column of its panel: calls put(k, weight).
template <typename Put>
static inline void for_column(const float* weight, int64_t in_channels, int64_t taps,
                              const Put& put) {
  for (int64_t tap = 0; tap < taps; ++tap) {
    for (int64_t c = 0; c < in_channels; ++c) put(tap * in_channels + c, weight[c * taps + tap]);
  }
}

// NaN if one is not finite.
static inline float largest_of(const float* weight, int64_t count) {
  float largest = 0, sum = 0;
  for (int64_t k = 0; k < count; ++k) {
    const float magnitude = __builtin_fabsf(weight[k]);
    largest = magnitude > largest ? magnitude : largest;
    sum += weight[k] - weight[k];
  }
  return largest + sum;
}

static void pack_numbers(float* panel, const float* weight, int64_t channels, int64_t in_channels,
                         int64_t taps) {
  const int64_t depth = in_channels * taps;
  for (int64_t first = 0; first < PANEL; first += LANES) {
    const int64_t left = channels - first, rows = left < 0 ? 0 : left < LANES ? left : LANES;
    transpose_rows(weight + first * depth, rows, depth, [&](int64_t k) {
      return panel + (k % taps * in_channels + k / taps) * PANEL + first;
    });
  }
}

static void pack_halves(float* panel, const float* weight, int64_t channels, int64_t in_channels,
                        int64_t taps) {
  const int64_t depth = in_channels * taps;
  uint16_t* const halves = reinterpret_cast<uint16_t*>(panel + PANEL);
  memset(panel, 0, panel_bytes(depth, FASTDDPM_PACKING_FLOAT16));
  for (int64_t column = 0; column < channels; ++column, weight += depth) {
    const float scale = panel[column] = half_scale(largest_of(weight, depth));
    for_column(weight, in_channels, taps, [&](int64_t k, float w) {
      halves[k * PANEL + column] = scale == scale ? half_of(w / scale) : 0;
    });
  }
}

static void pack_weights(void* packed, const float* weight, int64_t out_channels,
                         int64_t in_channels, int64_t kernel, int64_t packing) {
  const int64_t taps = kernel * kernel, depth = in_channels * taps;
  const auto pack_panel = packing == FASTDDPM_PACKING_FLOAT32 ? pack_numbers : pack_halves;
  char* panel = static_cast<char*>(packed);
  for (int64_t first = 0; first < out_channels; first += PANEL) {
    const int64_t left = out_channels - first;
    pack_panel(reinterpret_cast<float*>(panel), weight + first * depth, left < PANEL ? left : PANEL,
               in_channels, taps);
    panel += panel_bytes(depth, packing);
  }
}

// Rows [first, first + count) of a panel: where they lie, or brought into `room`, [count][PANEL].
static inline PanelChunk read_panel(const void* packed, int64_t packing, int64_t depth,
                                    int64_t panel, int64_t first, int64_t count, float* room) {
  const void* at = static_cast<const char*>(packed) + panel * panel_bytes(depth, packing);
  const float* numbers = static_cast<const float*>(at);
  if (packing == FASTDDPM_PACKING_FLOAT32) return chunk_of(numbers, first, count);
  const uint16_t* halves = reinterpret_cast<const uint16_t*>(numbers + PANEL) + first * PANEL;
  f32 scale[VECTORS];
  for (int v = 0; v < VECTORS; ++v) scale[v] = load(numbers + v * LANES);
  for (int64_t k = 0; k < count; ++k, halves += PANEL) {
    for (int v = 0; v < VECTORS; ++v) {
      store(room + k * PANEL + v * LANES, load_half(halves + v * LANES) * scale[v]);
    }
  }
  return {room, halves, PANEL * int64_t{sizeof(uint16_t)}};
}

}  // namespace
