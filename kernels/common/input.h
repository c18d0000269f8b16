// What an instruction reads: channels of a pixel of one map or of two, normalised and activated.
//
//     y = activation((x - mean) scale + shift),   silu(v) = v / (1 + exp(-v))
#pragma once

#include "../include/fastddpm.h"
#include "simd.h"

namespace {

// v + n ln 2 for |n| <= 128. A product that is rounded needs ln 2 in two parts.
static inline f32 add_multiple_of_ln_2(f32 n, f32 v) {
  if constexpr (FUSED) return multiply_add(n, broadcast(0.693147181f), v);
  return multiply_add(n, broadcast(-2.12194440e-4f), multiply_add(n, broadcast(0.693359375f), v));
}

// exp(x) to 2 ulp for |x| <= 87, beyond that as at the border: 2^n exp(r), n = round(x / ln 2),
// r = x - n ln 2 in two parts, |r| <= .347, where the polynomial is off by 3e-9 at most. NaN gives
// any number.
static inline f32 bounded_exponential(f32 x) {
  constexpr float EXP[] = {
      1.38145406e-3f, 8.36874545e-3f, 4.16683890e-2f, 1.66665211e-1f, .49999994f, 1.0f, 1.0f};
  constexpr float ROUND = 0x1.8p23f;  // adding it rounds to an integer and shows it in the bits
  x = minimum(maximum(x, broadcast(-87.0f)), broadcast(87.0f));
  const f32 shifted = multiply_add(x, broadcast(0x1.715476p0f), broadcast(ROUND));
  const f32 n = shifted - ROUND;
  f32 r = multiply_add(n, broadcast(-0.693359375f), x);
  r = multiply_add(n, broadcast(2.12194440e-4f), r);
  f32 value = broadcast(EXP[0]);
#pragma GCC unroll 6
  for (int power = 1; power < 7; ++power) value = multiply_add(value, r, broadcast(EXP[power]));
  return reinterpret_cast<f32>(reinterpret_cast<u32>(value) +
                               (reinterpret_cast<u32>(shifted) << 23));
}

// v / (1 + exp(-v)), off by 3e-7 of itself at most for |v| <= 20 and by 6e-7 down to -80, with one
// division for both fractions:
//
//     exp(-v) = 2^n exp(-r),   n = round(-v / ln 2),   r = v + n ln 2
//     exp(-r) = (c - r) / (c + r),   c = r coth(r / 2) = 2 + r^2 / 6 - r^4 / 360 + ...
//
// c's polynomial is for |r| <= .347, where exp(-r) is off by 6e-10 of itself. Below -88 exp(-v) is
// infinite, above 87 it changes nothing. NaN stays NaN, and minus infinity becomes it, as in torch.
static inline f32 silu(f32 v) {
  constexpr float ROUND = 0x1.8p23f + 127;  // n + 127 shows in the bits, the exponent of 2^n
  const f32 bounded = minimum(maximum(v, broadcast(-89.0f)), broadcast(87.0f));
  const f32 shifted = multiply_add(bounded, broadcast(-0x1.715476p0f), broadcast(ROUND));
  const f32 r = add_multiple_of_ln_2(shifted - ROUND, bounded), square = r * r;
  f32 c = multiply_add(square, broadcast(-2.7659854e-3f), broadcast(1.6666618e-1f));
  c = multiply_add(square, c, broadcast(2.0f));
  const f32 power = reinterpret_cast<f32>(reinterpret_cast<u32>(shifted) << 23);
  return v / multiply_add(power, c - r, c + r) * (c + r);
}

static inline int64_t all_channels(const fastddpm_input& x) {
  return x.channels[0] + x.channels[1];
}

static inline int64_t round_up(int64_t count, int64_t multiple) {
  return (count + multiple - 1) / multiple * multiple;
}

// Channels [first, end) of `part` of `count` pixels in a row to `to`, `to_stride` floats apart, in
// whole vectors: up to LANES - 1 floats beyond them are written. `pixel` counts all pixels of the
// map, `sample` says whose norm applies. What lies `ahead` pixels further on is asked for.
template <bool NORM, bool SILU>
static inline void read_pixels_as(const fastddpm_input& x, int part, int64_t sample, int64_t pixel,
                                  int64_t count, int64_t first, int64_t end, float* to,
                                  int64_t to_stride, int64_t ahead) {
  const int64_t stride = x.stride[part], width = round_up(all_channels(x), FASTDDPM_ALIGN);
  const int64_t offset = part == 0 ? 0 : x.channels[0];
  for (int64_t c = first; c < end; c += LANES, to += LANES) {
    f32 mean = {}, scale = {}, shift = {};
    if constexpr (NORM) {
      // The norm of a last vector may end at the end of its buffer.
      const float* norm = x.norm + sample * 3 * width + offset + c;
      const int64_t left = width - offset - c;
      mean = load(norm, left), scale = load(norm + width, left),
      shift = load(norm + 2 * width, left);
    }
    const float* const from = x.data[part] + pixel * stride + c;
    const auto read = [&](auto load_pixel) {
      const float* at = from;
      float* result = to;
#pragma GCC unroll 2
      for (int64_t p = 0; p < count; ++p, at += stride, result += to_stride) {
        __builtin_prefetch(at + ahead * stride);
        f32 v = load_pixel(at);
        if constexpr (NORM) v = multiply_add(v - mean, scale, shift);
        store(result, SILU ? silu(v) : v);
      }
    };
    if (stride - c >= LANES) {
      read([](const float* at) { return load(at); });
    } else {
      // The map may end with these channels.
      read([&](const float* at) { return load(at, stride - c); });
    }
  }
}

static inline void read_pixels(const fastddpm_input& x, int part, int64_t sample, int64_t pixel,
                               int64_t count, int64_t first, int64_t end, float* to,
                               int64_t to_stride, int64_t ahead = 0) {
  const auto read = [&](auto as) {
    as(x, part, sample, pixel, count, first, end, to, to_stride, ahead);
  };
  if (x.norm == nullptr && x.activation == FASTDDPM_ACTIVATION_NONE) {
    read(read_pixels_as<false, false>);
  } else if (x.norm == nullptr) {
    read(read_pixels_as<false, true>);
  } else if (x.activation == FASTDDPM_ACTIVATION_NONE) {
    read(read_pixels_as<true, false>);
  } else {
    read(read_pixels_as<true, true>);
  }
}

// All channels of a pixel, side by side, into `to`, which has room for round_up(channels, LANES).
static inline void read_pixel(const fastddpm_input& x, int64_t sample, int64_t pixel, float* to) {
  read_pixels(x, 0, sample, pixel, 1, 0, x.channels[0], to, 0);
  // The second part overwrites what the first has written beyond its end.
  if (x.channels[1] > 0) {
    read_pixels(x, 1, sample, pixel, 1, 0, x.channels[1], to + x.channels[0], 0);
  }
}

}  // namespace
