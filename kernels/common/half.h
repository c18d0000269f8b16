// Half-precision weights: binary16 to float, a vector at a time, and back for packing.
//
// Weights of one output channel share a scale, a power of two, so that the largest lies just below
// the largest half: what is lost is 11 bits of each weight, never its range.
#pragma once

#include "simd.h"

namespace {

// LANES halves, exactly.
static inline f32 load_half(const uint16_t* from) {
#if defined(__AVX512F__)
  __m256i bits;
  memcpy(&bits, from, sizeof bits);
  return reinterpret_cast<f32>(_mm512_cvtph_ps(bits));
#elif defined(__F16C__)
  __m128i bits;
  memcpy(&bits, from, sizeof bits);
  return reinterpret_cast<f32>(_mm256_cvtph_ps(bits));
#elif defined(__aarch64__)
  return reinterpret_cast<f32>(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from))));
#else
  // The exponent's bias is 127 and not 15; a product of a power of two is exact, subnormals too.
  u32 bits;
  for (int lane = 0; lane < LANES; ++lane) bits[lane] = from[lane];
  const f32 magnitude = reinterpret_cast<f32>((bits & 0x7FFFu) << 13) * 0x1p112f;
  return as_f32(as_i32(magnitude) | reinterpret_cast<i32>((bits & 0x8000u) << 16));
#endif
}

// Rounded to nearest even; |value| < 2^15.
static inline uint16_t half_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  const uint32_t sign = bits >> 16 & 0x8000u;
  bits &= 0x7FFFFFFFu;
  if (bits < 0x38800000u) {  // below 2^-14 halves are multiples of 2^-24, as are floats above .5
    float shifted = __builtin_fabsf(value) + 0.5f;
    memcpy(&bits, &shifted, sizeof bits);
    return static_cast<uint16_t>(sign | (bits - 0x3F000000u));
  }
  bits += 0xFFFu + (bits >> 13 & 1u);
  return static_cast<uint16_t>(sign | ((bits >> 13) - (112u << 10)));
}

// The power of two that brings numbers of at most this magnitude below 2^15. NaN if one of them is
// not finite: all of the channel then is NaN.
static inline float half_scale(float largest) {
  if (!(largest <= 3.4028235e38f)) return __builtin_nanf("");
  int exponent = 0;
  __builtin_frexpf(largest, &exponent);
  exponent -= 15;
  return __builtin_ldexpf(1.0f, exponent < -100 ? -100 : exponent);
}

}  // namespace
