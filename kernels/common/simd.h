// Vectors of floats and words in the compiler's own vector types (GCC, Clang), for one instruction
// set: 4 lanes by default (SSE2, NEON), 8 with AVX2, 16 with AVX-512. Operators work lane by lane;
// only what they lack stands here. Everything is `static`: each instruction set has its own copy.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float f32 __attribute__((vector_size(4 * LANES)));
typedef int32_t i32 __attribute__((vector_size(4 * LANES)));
typedef uint32_t u32 __attribute__((vector_size(4 * LANES)));
typedef uint64_t u64 __attribute__((vector_size(4 * LANES)));  // LANES / 2 of them

static inline f32 as_f32(i32 v) { return reinterpret_cast<f32>(v); }
static inline i32 as_i32(f32 v) { return reinterpret_cast<i32>(v); }

static inline f32 broadcast(float value) { return value - f32{}; }

// The first `count` lanes, all for LANES and more.
#if defined(__AVX512F__)
static inline __mmask16 first_lanes(int64_t count) {
  return static_cast<__mmask16>((1u << (count < LANES ? count : LANES)) - 1);
}
#elif defined(__AVX2__)
static inline __m256i first_lanes(int64_t count) {
  const i32 limit = static_cast<int32_t>(count < LANES ? count : LANES) - i32{};
  return reinterpret_cast<__m256i>(i32{0, 1, 2, 3, 4, 5, 6, 7} < limit);
}
#endif

// `count` floats, fewer than LANES at the end of an array; the other lanes are 0.
static inline f32 load(const float* from, int64_t count) {
#if defined(__AVX512F__)
  return reinterpret_cast<f32>(_mm512_maskz_loadu_ps(first_lanes(count), from));
#elif defined(__AVX2__)
  return reinterpret_cast<f32>(_mm256_maskload_ps(from, first_lanes(count)));
#else
  f32 v = {};
  memcpy(&v, from, (count < LANES ? count : LANES) * sizeof(float));
  return v;
#endif
}

static inline void store(float* to, f32 v, int64_t count) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(to, first_lanes(count), reinterpret_cast<__m512>(v));
#elif defined(__AVX2__)
  _mm256_maskstore_ps(to, first_lanes(count), reinterpret_cast<__m256>(v));
#else
  memcpy(to, &v, (count < LANES ? count : LANES) * sizeof(float));
#endif
}

// 64-bit products of the low 32 bits of each lane; the high 32 bits are ignored.
static inline u64 multiply_low_words(u64 a, u64 b) {
#if defined(__AVX512F__)
  return reinterpret_cast<u64>(
      _mm512_mul_epu32(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif defined(__AVX2__)
  return reinterpret_cast<u64>(
      _mm256_mul_epu32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#elif defined(__SSE2__)
  return reinterpret_cast<u64>(
      _mm_mul_epu32(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
#elif defined(__aarch64__)
  return reinterpret_cast<u64>(vmull_u32(vmovn_u64(reinterpret_cast<uint64x2_t>(a)),
                                         vmovn_u64(reinterpret_cast<uint64x2_t>(b))));
#else
  const u64 low = (u64{} + 0xFFFFFFFFu);
  return (a & low) * (b & low);
#endif
}

// Whether the instruction set has multiply-adds that are rounded once.
#if defined(__AVX2__) || defined(__aarch64__)
constexpr bool FUSED = true;
#else
constexpr bool FUSED = false;
#endif

// a b + c, rounded once where the instruction set can, the same at every call of one set: code is
// compiled with -ffp-contract=off, so where a multiply-add is fused is written and not guessed.
static inline f32 multiply_add(f32 a, f32 b, f32 c) {
#if defined(__AVX512F__)
  return reinterpret_cast<f32>(_mm512_fmadd_ps(
      reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(c)));
#elif defined(__AVX2__)
  return reinterpret_cast<f32>(_mm256_fmadd_ps(
      reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), reinterpret_cast<__m256>(c)));
#elif defined(__aarch64__)
  return reinterpret_cast<f32>(vfmaq_f32(reinterpret_cast<float32x4_t>(c),
                                         reinterpret_cast<float32x4_t>(a),
                                         reinterpret_cast<float32x4_t>(b)));
#else
  return a * b + c;
#endif
}

// a b + c, rounded once by every instruction set.
static inline f32 fused_multiply_add(f32 a, f32 b, f32 c) {
  if constexpr (FUSED) return multiply_add(a, b, c);
  for (int lane = 0; lane < LANES; ++lane) c[lane] = __builtin_fmaf(a[lane], b[lane], c[lane]);
  return c;
}

static inline f32 load(const float* from) {
  f32 v;
  memcpy(&v, from, sizeof v);
  return v;
}

static inline void store(float* to, f32 v) { memcpy(to, &v, sizeof v); }

// Keeps v in a register: the compiler would otherwise fold a vector that is used several times into
// each use as a memory operand, and the loads become the limit.
static inline void keep_in_register(f32& v) {
#if defined(__x86_64__) || defined(__i386__)
  asm("" : "+v"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
}

// The same for an address: the compiler would otherwise add what is constant about each of its uses
// to the index, and keep all those sums in memory.
template <typename Number>
static inline void keep_in_register(Number*& address) {
  asm("" : "+r"(address));
}

// sum = multiply_add(a, b, sum), in the register that sum lives in: where all registers are taken,
// the compiler would otherwise move sums about.
static inline void add_product(f32& sum, f32 a, f32 b) {
#if defined(__FMA__) && !defined(__AVX512F__)
  asm("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
#else
  sum = multiply_add(a, b, sum);
#endif
}

// Lane by lane; what NaN gives depends on the instruction set.
static inline f32 minimum(f32 a, f32 b) {
#if defined(__AVX512F__)
  return reinterpret_cast<f32>(
      _mm512_min_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
#elif defined(__AVX2__)
  return reinterpret_cast<f32>(
      _mm256_min_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b)));
#else
  return a < b ? a : b;
#endif
}

static inline f32 maximum(f32 a, f32 b) {
#if defined(__AVX512F__)
  return reinterpret_cast<f32>(
      _mm512_max_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
#elif defined(__AVX2__)
  return reinterpret_cast<f32>(
      _mm256_max_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b)));
#else
  return a > b ? a : b;
#endif
}

// Correctly rounded.
static inline f32 square_root(f32 v) {
#if defined(__AVX512F__)
  return reinterpret_cast<f32>(_mm512_sqrt_ps(reinterpret_cast<__m512>(v)));
#elif defined(__AVX2__)
  return reinterpret_cast<f32>(_mm256_sqrt_ps(reinterpret_cast<__m256>(v)));
#elif defined(__SSE2__)
  return reinterpret_cast<f32>(_mm_sqrt_ps(reinterpret_cast<__m128>(v)));
#elif defined(__aarch64__)
  return reinterpret_cast<f32>(vsqrtq_f32(reinterpret_cast<float32x4_t>(v)));
#else
  for (int lane = 0; lane < LANES; ++lane) v[lane] = __builtin_sqrtf(v[lane]);
  return v;
#endif
}

}  // namespace
