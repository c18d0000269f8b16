// The weights of a 3x3 convolution as the kernel reads them: one panel of output channels after the
// other, channels beyond the last 0.
//
//     FLOAT32      [VECTORS][in][9][LANES]
//     FLOAT16      scale [PANEL] floats, then as FLOAT32 in half precision; weight = half scale
//     TRANSFORMED  [36][in][PANEL], G g G^T
//
// A scale is a power of two, so that nothing but the rounding to half precision is lost, and the
// largest weight of a channel becomes 2^14 to 2^15, so that small ones keep their digits.
#pragma once

#include "../common/gemm.h"
#include "../common/half.h"
#include "../common/lanes.h"
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

// The scale of FLOAT16, which a panel begins with, and null otherwise.
static inline const float* panel_scale(const void* panel, int64_t packing) {
  return packing == FASTDDPM_PACKING_FLOAT16 ? static_cast<const float*>(panel) : nullptr;
}

static inline f32 number(const float* from) { return load(from); }
static inline f32 number(const uint16_t* from) { return load_half(from); }

// Rows ROW... of G g G^T for WIDTH vectors of output channels and `count` input channels; of rows
// +-p and of +-q the half is common work. The numbers of a vector, g [count][9][LANES], lie
// g_vector apart; each of the six of a row is stored [count][PANEL], u_frequency from the next: a
// constant, if it shall be fast. One input channel after the other, so that each line of the cache
// is written once and whole.
template <int WIDTH, int... ROW, typename Number>
static inline void transform_rows(const Number* g, int64_t g_vector, int64_t count, float* u,
                                  int64_t u_frequency) {
  for (int64_t k = 0; k < count; ++k, g += TAPS * LANES, u += PANEL) {
#pragma GCC unroll 4
    for (int w = 0; w < WIDTH; ++w) {
      f32 taps[TAPS];
#pragma GCC unroll 9
      for (int at = 0; at < TAPS; ++at) taps[at] = number(g + w * g_vector + at * LANES);
      float* to = u + w * LANES;
      const auto emit = [&](int j, f32 value) { store(to + j * u_frequency, value); };
      ((transform_weights<ROW>([&](int at) { return taps[at]; }, emit), to += POINTS * u_frequency),
       ...);
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

// Where number k of [in][9] of one channel of a panel lies.
static inline int64_t place(int64_t channel, int64_t k, int64_t in_channels) {
  return (channel / LANES * in_channels * TAPS + k) * LANES + channel % LANES;
}

static void pack_halves(char* to, const float* weight, int64_t channels, int64_t in_channels) {
  float scale[PANEL] = {};
  uint16_t* const halves = reinterpret_cast<uint16_t*>(to + sizeof scale);
  memset(halves, 0, in_channels * TAPS * PANEL * 2);
  for (int64_t channel = 0; channel < channels; ++channel) {
    const float* own = weight + channel * in_channels * TAPS;
    scale[channel] = half_scale(own, in_channels * TAPS);
    for (int64_t k = 0; k < in_channels * TAPS; ++k) {
      halves[place(channel, k, in_channels)] = half_of(own[k] / scale[channel]);
    }
  }
  memcpy(to, scale, sizeof scale);
}

static void pack_numbers(float* to, const float* weight, int64_t channels, int64_t in_channels) {
  const int64_t count = in_channels * TAPS;
  for (int64_t first = 0; first < PANEL; first += LANES) {
    const int64_t left = channels - first, rows = left < 0 ? 0 : left < LANES ? left : LANES;
    transpose_rows(weight + first * count, rows, count,
                   [&](int64_t k) { return to + first * count + k * LANES; });
  }
}

static void pack_transformed(float* to, const float* weight, int64_t channels,
                             int64_t in_channels) {
  const int64_t stride = in_channels * PANEL;
  for (int64_t k = 0; k < in_channels; ++k, to += PANEL) {
    alignas(64) float taps[VECTORS][TAPS][LANES] = {};
    for (int64_t channel = 0; channel < channels; ++channel) {
      for (int64_t tap = 0; tap < TAPS; ++tap) {
        taps[channel / LANES][tap][channel % LANES] =
            weight[(channel * in_channels + k) * TAPS + tap];
      }
    }
    transform_rows<VECTORS, 0, 1, 2, 3, 4, 5>(taps[0][0], TAPS * LANES, 1, to, stride);
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
