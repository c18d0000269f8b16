// Half-precision numbers as 16-bit words: one rounded from a float, a vector of them read as
// floats.
#pragma once

#include "simd.h"

namespace {

// Rounded to nearest, ties to even; beyond 65519 infinity.
static inline uint16_t half_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  const uint32_t sign = bits >> 16 & 0x8000;
  bits &= 0x7FFFFFFF;
  if (bits >= 0x47800000)
    return static_cast<uint16_t>(sign | (bits > 0x7F800000 ? 0x7E00 : 0x7C00));
  if (bits < 0x38800000) {
    // Below 2^-14: adding 1/2 leaves multiples of 2^-24 in the low bits, rounded.
    float small;
    memcpy(&small, &bits, sizeof small);
    small += 0.5f;
    memcpy(&bits, &small, sizeof bits);
    return static_cast<uint16_t>(sign | (bits - 0x3F000000));
  }
  const uint32_t odd = bits >> 13 & 1;
  return static_cast<uint16_t>(sign | (bits - 0x38000000 + 0xFFF + odd) >> 13);
}

// LANES of them, exactly.
static inline f32 load_half(const uint16_t* from) {
#if defined(__AVX512F__)
  __m256i half;
  memcpy(&half, from, sizeof half);
  return reinterpret_cast<f32>(_mm512_cvtph_ps(half));
#elif defined(__AVX2__)
  __m128i half;
  memcpy(&half, from, sizeof half);
  return reinterpret_cast<f32>(_mm256_cvtph_ps(half));
#elif defined(__aarch64__)
  float16x4_t half;
  memcpy(&half, from, sizeof half);
  return reinterpret_cast<f32>(vcvt_f32_f16(half));
#else
  u32 half;
  for (int lane = 0; lane < LANES; ++lane) half[lane] = from[lane];
  // Exponent and fraction in their places; the product corrects the exponent's bias.
  const f32 magnitude = reinterpret_cast<f32>((half & 0x7FFF) << 13) * 0x1p112f;
  const u32 infinite = reinterpret_cast<u32>(magnitude >= 65536.0f) & 0x7F800000;
  return reinterpret_cast<f32>(reinterpret_cast<u32>(magnitude) | infinite | (half & 0x8000) << 16);
#endif
}

}  // namespace
