// What an instruction reads: channels of a pixel of one map or of two, normalised and activated.
//
//     y = activation((x - mean) scale + shift),   silu(v) = v / (1 + exp(-v))
#pragma once

#include "../include/fastddpm.h"
#include "simd.h"

namespace {

// exp(x) to 2 ulp for |x| <= 87, beyond that as at the border: 2^n exp(r), n = round(x / ln 2),
// r = x - n ln 2 in two parts, Taylor to r^7 (|r| <= .347: 1e-8 relative).
static inline f32 bounded_exponential(f32 x) {
  constexpr float TAYLOR[] = {1.0f / 5040, 1.0f / 720, 1.0f / 120, 1.0f / 24,
                              1.0f / 6,    1.0f / 2,   1.0f,       1.0f};
  constexpr float ROUND = 0x1.8p23f;  // adding it rounds to an integer and shows it in the bits
  x = x < -87.0f ? broadcast(-87.0f) : x;
  x = x > 87.0f ? broadcast(87.0f) : x;
  const f32 shifted = multiply_add(x, broadcast(0x1.715476p0f), broadcast(ROUND));
  const f32 n = shifted - ROUND;
  f32 r = multiply_add(n, broadcast(-0.693359375f), x);
  r = multiply_add(n, broadcast(2.12194440e-4f), r);
  f32 value = broadcast(TAYLOR[0]);
  for (int power = 1; power < 8; ++power) value = multiply_add(value, r, broadcast(TAYLOR[power]));
  // In unsigned words: NaN, which any lane may hold, leads to exponents that overflow.
  const u32 exponent = reinterpret_cast<u32>(shifted) - 0x4B400000u;
  return reinterpret_cast<f32>(reinterpret_cast<u32>(value) + (exponent << 23));
}

// NaN stays NaN, and minus infinity becomes it, as in torch.
static inline f32 silu(f32 v) {
  const f32 e = bounded_exponential(-v);
  return v / (1.0f + (v < -87.0f ? broadcast(__builtin_inff()) : e));
}

static inline int64_t all_channels(const fastddpm_input& x) {
  return x.channels[0] + x.channels[1];
}

static inline int64_t round_up(int64_t count, int64_t multiple) {
  return (count + multiple - 1) / multiple * multiple;
}

// Channels [first, end) of `part` of one pixel, into `to` + first, in whole vectors: up to LANES -
// 1 floats beyond are read (a map's stride allows it) and written. `pixel` counts all pixels of the
// map, `sample` says whose norm applies. Where the second part begins in the middle of a vector of
// the norm, vectors are unaligned.
static inline void read_part(const fastddpm_input& x, int part, int64_t sample, int64_t pixel,
                             int64_t first, int64_t end, float* to) {
  const float* from = x.data[part] + pixel * x.stride[part];
  if (x.norm == nullptr) {
    for (int64_t c = first; c < end; c += LANES) {
      const f32 v = load(from + c);
      store(to + c, x.activation == FASTDDPM_ACTIVATION_SILU ? silu(v) : v);
    }
    return;
  }
  const int64_t width = round_up(all_channels(x), FASTDDPM_ALIGN);
  const int64_t offset = part == 0 ? 0 : x.channels[0];
  const float* norm = x.norm + sample * 3 * width + offset;
  for (int64_t c = first; c < end; c += LANES) {
    // The norm of a last vector may end at the end of its buffer.
    const int64_t left = width - offset - c;
    const f32 mean = load(norm + c, left), scale = load(norm + width + c, left),
              shift = load(norm + 2 * width + c, left);
    const f32 v = multiply_add(load(from + c) - mean, scale, shift);
    store(to + c, x.activation == FASTDDPM_ACTIVATION_SILU ? silu(v) : v);
  }
}

// All channels of a pixel, side by side, into `to`, which has room for round_up(channels, LANES).
static inline void read_pixel(const fastddpm_input& x, int64_t sample, int64_t pixel, float* to) {
  read_part(x, 0, sample, pixel, 0, x.channels[0], to);
  // The second part overwrites what the first has written beyond its end.
  if (x.channels[1] > 0) {
    read_part(x, 1, sample, pixel, 0, x.channels[1], to + x.channels[0]);
  }
}

}  // namespace
