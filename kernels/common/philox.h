// Philox4x32-10 and Box-Muller: the C++ twin of fastddpm/noise.py, bit for bit.
//
// The constants and the order of operations are the specification's; compile with
// -ffp-contract=off, a fused multiply-add changes the last bit.
#pragma once

#include "simd.h"

namespace {

// Words 1 to 3 of the counter, and the key; word 0 runs over the sample's elements.
struct Stream {
  uint32_t c1, c2, c3, k0, k1;
};

static inline Stream stream_of(uint64_t seed, int64_t index, int64_t step, uint32_t purpose) {
  const uint64_t sample = static_cast<uint64_t>(index);
  return {(static_cast<uint32_t>(step) & 0xFFFFFFu) | (purpose << 24),
          static_cast<uint32_t>(sample), static_cast<uint32_t>(sample >> 32),
          static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
}

// The four words of LANES / 2 counters that begin at c0, in words[0..3]. Each word fills a 64-bit
// lane whose upper half may hold anything: products ignore it, and the store drops it.
static inline void philox(const Stream& stream, uint32_t c0, uint32_t words[4][LANES]) {
  constexpr int COUNTERS = LANES / 2;
  u64 c[4] = {};
  for (int lane = 0; lane < COUNTERS; ++lane) c[0][lane] = c0 + static_cast<uint32_t>(lane);
  c[1] = u64{} + stream.c1;
  c[2] = u64{} + stream.c2;
  c[3] = u64{} + stream.c3;
  uint32_t k0 = stream.k0, k1 = stream.k1;
  for (int round = 0; round < 10; ++round) {
    const u64 product_0 = multiply_low_words(c[0], u64{} + 0xD2511F53u);
    const u64 product_1 = multiply_low_words(c[2], u64{} + 0xCD9E8D57u);
    c[0] = (product_1 >> 32) ^ c[1] ^ k0;
    c[2] = (product_0 >> 32) ^ c[3] ^ k1;
    c[1] = product_1;
    c[3] = product_0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  for (int word = 0; word < 4; ++word) {
    for (int lane = 0; lane < COUNTERS; ++lane) {
      words[word][lane] = static_cast<uint32_t>(c[word][lane]);
    }
  }
}

// Horner's rule from the highest power down, product and sum rounded apart.
template <int COUNT>
static inline f32 polynomial(const float (&coefficients)[COUNT], f32 x) {
  f32 value = x * coefficients[COUNT - 1] + coefficients[COUNT - 2];
  for (int power = COUNT - 3; power >= 0; --power) value = value * x + coefficients[power];
  return value;
}

// u = float32(word) 2^-32 + 2^-33; the two halves are exact, so their sum is the conversion rounded
// to nearest even.
static inline f32 uniform(u32 word) {
  const f32 high = __builtin_convertvector(reinterpret_cast<i32>(word >> 16), f32);
  const f32 low = __builtin_convertvector(reinterpret_cast<i32>(word & 0xFFFFu), f32);
  return (high * 65536.0f + low) * 0x1p-32f + 0x1p-33f;
}

static inline f32 minus_two_ln(f32 u) {
  constexpr float LOG[] = {-2.0f,
                           0.9999998211860657f,
                           -0.6666789054870605f,
                           0.5000355243682861f,
                           -0.3992447853088379f,
                           0.33140626549720764f,
                           -0.29832708835601807f,
                           0.28615444898605347f,
                           -0.17477595806121826f};
  constexpr int32_t SQRT_HALF_BITS = 0x3F3504F3;
  const i32 bits = as_i32(u);
  const i32 exponent = (bits - SQRT_HALF_BITS) >> 23;
  const f32 f = as_f32(bits - exponent * (1 << 23)) - 1.0f;
  return __builtin_convertvector(exponent, f32) * -1.3862943649291992f + f * polynomial(LOG, f);
}

static inline void cos_sin(u32 word, f32& cosine, f32& sine) {
  constexpr float SIN[] = {1.5707963705062866f, -0.6459649801254272f, 0.07969201356172562f,
                           -0.0046287840232253075f};
  constexpr float COS[] = {1.0f, -1.2337005138397217f, 0.25366851687431335f, -0.0208552535623312f,
                           0.0008935725199989974f};
  const i32 quadrant = reinterpret_cast<i32>(word >> 30);
  const i32 fraction = reinterpret_cast<i32>((word >> 6) & 0xFFFFFFu) - 0x800000;
  const f32 s = __builtin_convertvector(fraction, f32) * 0x1p-24f;
  const f32 square = s * s;
  const f32 c = polynomial(COS, square);
  const f32 d = s * polynomial(SIN, square);
  const i32 swap = (quadrant & 1) != 0;
  // (c, d), (-d, c), (-c, -d), (d, -c) for quadrants 0, 1, 2, 3
  const i32 x = (as_i32(d) & swap) | (as_i32(c) & ~swap);
  const i32 y = (as_i32(c) & swap) | (as_i32(d) & ~swap);
  constexpr int32_t SIGN = INT32_MIN;
  cosine = as_f32(x ^ (((quadrant == 1) | (quadrant == 2)) & SIGN));
  sine = as_f32(y ^ ((quadrant >= 2) & SIGN));
}

// The 4 * LANES normals of LANES counters that begin at c0, in element order.
static inline void normals(const Stream& stream, uint32_t c0, float* z) {
  alignas(64) uint32_t half[2][4][LANES];
  philox(stream, c0, half[0]);
  philox(stream, c0 + LANES / 2, half[1]);
  f32 by_word[4];
  for (int pair = 0; pair < 4; pair += 2) {
    u32 words[2];
    for (int word = 0; word < 2; ++word) {
      memcpy(&words[word], half[0][pair + word], sizeof(u32) / 2);
      memcpy(reinterpret_cast<char*>(&words[word]) + sizeof(u32) / 2, half[1][pair + word],
             sizeof(u32) / 2);
    }
    const f32 radius = square_root(minus_two_ln(uniform(words[0])));
    f32 cosine, sine;
    cos_sin(words[1], cosine, sine);
    by_word[pair] = radius * cosine;
    by_word[pair + 1] = radius * sine;
  }
  for (int lane = 0; lane < LANES; ++lane) {
    for (int word = 0; word < 4; ++word) z[4 * lane + word] = by_word[word][lane];
  }
}

}  // namespace
