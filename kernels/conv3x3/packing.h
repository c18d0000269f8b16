// The weights of a 3x3 convolution as the kernel reads them: one panel of output channels after the
// other, channels beyond the last 0.
//
//     FLOAT32      [in][9][PANEL]
//     FLOAT16      scale [PANEL] floats, then [in][9][PANEL] in half precision; weight = half scale
//     TRANSFORMED  [36][in][PANEL], G g G^T
//
// A scale is a power of two, so that nothing but the rounding to half precision is lost, and the
// largest weight of a channel becomes 2^14 to 2^15, so that small ones keep their digits.
#pragma once

#include "../common/gemm.h"
#include "../common/half.h"
#include "../include/fastddpm.h"
#include "winograd.h"

namespace {

constexpr int64_t TAPS = 9;

static inline int64_t panels_of(int64_t channels) { return (channels + PANEL - 1) / PANEL; }

static inline int64_t panel_bytes(int64_t in_channels, int64_t packing) {
  const int64_t vectors = in_channels * PANEL;
  if (packing == FASTDDPM_PACKING_FLOAT16) return PANEL * 4 + vectors * TAPS * 2;
  return vectors * 4 * (packing == FASTDDPM_PACKING_TRANSFORMED ? FREQUENCIES : TAPS);
}

// One panel: where its numbers begin, and how they are stored.
struct PanelWeights {
  const float* numbers;
  const uint16_t* halves;  // null unless FLOAT16
  const float* scale;      // null unless FLOAT16
};

static inline PanelWeights panel_weights(const void* packed, int64_t in_channels, int64_t packing,
                                         int64_t panel) {
  const char* at = static_cast<const char*>(packed) + panel * panel_bytes(in_channels, packing);
  const float* numbers = reinterpret_cast<const float*>(at);
  if (packing != FASTDDPM_PACKING_FLOAT16) return {numbers, nullptr, nullptr};
  return {nullptr, reinterpret_cast<const uint16_t*>(numbers + PANEL), numbers};
}

// Row ROW of G g G^T for input channels [first, end), to u [6][depth][PANEL] with `stride` floats
// between two of the six.
template <int ROW, int WIDTH>
static inline void transform_rows(const PanelWeights& weights, int64_t first, int64_t end, float* u,
                                  int64_t stride) {
  for (int64_t k = first; k < end; ++k, u += PANEL) {
#pragma GCC unroll 4
    for (int v = 0; v < WIDTH; ++v) {
      f32 row[POINTS];
      const int64_t at = k * TAPS * PANEL + v * LANES;
      if (weights.halves != nullptr) {
        const uint16_t* g = weights.halves + at;
        transform_weights<ROW>([&](int tap) { return load_half(g + tap * PANEL); }, row);
      } else {
        const float* g = weights.numbers + at;
        transform_weights<ROW>([&](int tap) { return load(g + tap * PANEL); }, row);
      }
#pragma GCC unroll 6
      for (int j = 0; j < POINTS; ++j) store(u + j * stride + v * LANES, row[j]);
    }
  }
}

static int64_t packed_bytes(int64_t out_channels, int64_t in_channels, int64_t, int64_t packing) {
  return panels_of(out_channels) * panel_bytes(in_channels, packing);
}

// The power of two that brings the largest weight of one output channel below 2^15; 1 if there is
// none that can be scaled.
static float half_scale(const float* weight, int64_t count) {
  float largest = 0;
  for (int64_t k = 0; k < count; ++k) {
    const float size = __builtin_fabsf(weight[k]);
    if (size > largest) largest = size;
  }
  if (!(largest >= 0x1p-100f && largest <= 0x1p100f)) return 1;
  int exponent;
  (void)__builtin_frexpf(largest, &exponent);
  return __builtin_ldexpf(1, exponent - 15);
}

static void pack_halves(char* to, const float* weight, int64_t channels, int64_t in_channels) {
  float scale[PANEL] = {};
  uint16_t* const halves = reinterpret_cast<uint16_t*>(to + sizeof scale);
  memset(halves, 0, in_channels * TAPS * PANEL * 2);
  for (int64_t channel = 0; channel < channels; ++channel) {
    const float* own = weight + channel * in_channels * TAPS;
    scale[channel] = half_scale(own, in_channels * TAPS);
    for (int64_t k = 0; k < in_channels * TAPS; ++k) {
      halves[k * PANEL + channel] = half_of(own[k] / scale[channel]);
    }
  }
  memcpy(to, scale, sizeof scale);
}

static void pack_numbers(float* to, const float* weight, int64_t channels, int64_t in_channels) {
  for (int64_t k = 0; k < in_channels * TAPS; ++k) {
    for (int64_t channel = 0; channel < PANEL; ++channel) {
      const float number = channel < channels ? weight[channel * in_channels * TAPS + k] : 0;
      to[k * PANEL + channel] = number;
    }
  }
}

static void pack_transformed(float* to, const float* weight, int64_t channels,
                             int64_t in_channels) {
  const int64_t stride = in_channels * PANEL;
  for (int64_t k = 0; k < in_channels; ++k, to += PANEL) {
    alignas(64) float taps[TAPS * PANEL] = {};
    for (int64_t channel = 0; channel < channels; ++channel) {
      for (int64_t tap = 0; tap < TAPS; ++tap) {
        taps[tap * PANEL + channel] = weight[(channel * in_channels + k) * TAPS + tap];
      }
    }
    const PanelWeights one = {taps, nullptr, nullptr};
    transform_rows<0, VECTORS>(one, 0, 1, to, stride);
    transform_rows<1, VECTORS>(one, 0, 1, to + 6 * stride, stride);
    transform_rows<2, VECTORS>(one, 0, 1, to + 12 * stride, stride);
    transform_rows<3, VECTORS>(one, 0, 1, to + 18 * stride, stride);
    transform_rows<4, VECTORS>(one, 0, 1, to + 24 * stride, stride);
    transform_rows<5, VECTORS>(one, 0, 1, to + 30 * stride, stride);
  }
}

static void pack(void* packed, const float* weight, int64_t out_channels, int64_t in_channels,
                 int64_t, int64_t packing) {
  for (int64_t panel = 0; panel < panels_of(out_channels); ++panel) {
    const int64_t first = panel * PANEL, left = out_channels - first;
    const int64_t channels = left < PANEL ? left : PANEL;
    char* const to = static_cast<char*>(packed) + panel * panel_bytes(in_channels, packing);
    const float* from = weight + first * in_channels * TAPS;
    if (packing == FASTDDPM_PACKING_FLOAT16) {
      pack_halves(to, from, channels, in_channels);
    } else if (packing == FASTDDPM_PACKING_TRANSFORMED) {
      pack_transformed(reinterpret_cast<float*>(to), from, channels, in_channels);
    } else {
      pack_numbers(reinterpret_cast<float*>(to), from, channels, in_channels);
    }
  }
}

}  // namespace
