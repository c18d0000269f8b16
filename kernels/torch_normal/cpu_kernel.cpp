// The normals that torch.randn draws on an x86 CPU with AVX2, from the generator's own state.
//
//     words        MT19937                       Matsumoto and Nishimura 1998
//     u            (word mod 2^24) 2^-24         all of them first, in order
//     z_k, z_k+8   sqrt(-2 ln(1 - u_k)) (cos, sin)(2 pi u_k+8)    of every 16; the last 16 of a
//                                                count that 16 does not divide are drawn anew
//
// The specification is torch itself: the polynomials are Cephes' (S. Moshier) in float32, and where
// torch's compiler fuses a multiply-add there is one here, so that the normals are the same to the
// last bit. The caller compares before it relies on that: another torch may round otherwise.
#include <algorithm>

#include "../common/kernels.h"
#include "../common/simd.h"

namespace {

using fastddpm::TorchNormalArguments;

#if defined(__AVX2__)

constexpr int64_t WORDS = FASTDDPM_MERSENNE_WORDS, MIDDLE = 397;
constexpr int64_t GROUP = 16, HALF = 8;

// The state and the one after it: every word of the second is made of earlier ones.
struct Twister {
  alignas(64) uint32_t words[2 * WORDS + LANES];
  alignas(64) float uniforms[WORDS];
  int64_t taken;
};

static inline u32 load_words(const uint32_t* from) {
  u32 v;
  memcpy(&v, from, sizeof v);
  return v;
}

void twist(uint32_t* words) {
  for (int64_t k = 0; k < WORDS; k += LANES) {
    const u32 low = load_words(words + k + 1);
    const u32 mixed = (load_words(words + k) & 0x80000000u) | (low & 0x7FFFFFFFu);
    const u32 odd = (0u - (low & 1u)) & 0x9908B0DFu;
    const u32 next = load_words(words + k + MIDDLE) ^ (mixed >> 1) ^ odd;
    memcpy(words + WORDS + k, &next, sizeof next);
  }
  memcpy(words, words + WORDS, WORDS * sizeof *words);
}

void temper(Twister& twister) {
  for (int64_t k = 0; k < WORDS; k += LANES) {
    u32 y = load_words(twister.words + k);
    y ^= y >> 11;
    y ^= (y << 7) & 0x9D2C5680u;
    y ^= (y << 15) & 0xEFC60000u;
    y ^= y >> 18;
    const i32 low = reinterpret_cast<i32>(y & 0xFFFFFFu);
    store(twister.uniforms + k, __builtin_convertvector(low, f32) * 0x1p-24f);
  }
}

void draw_uniforms(Twister& twister, float* out, int64_t count) {
  while (count > 0) {
    if (twister.taken == WORDS) {
      twist(twister.words);
      temper(twister);
      twister.taken = 0;
    }
    const int64_t now = std::min(count, WORDS - twister.taken);
    memcpy(out, twister.uniforms + twister.taken, now * sizeof *out);
    twister.taken += now;
    out += now;
    count -= now;
  }
}

static inline f32 either(i32 condition, f32 yes, f32 no) {
  return as_f32((as_i32(yes) & condition) | (as_i32(no) & ~condition));
}

// v in (0, 1], a normal number.
static inline f32 natural_logarithm(f32 v) {
  constexpr float P[] = {3.3333331174e-1f,  -2.4999993993e-1f, 2.0000714765e-1f,
                         -1.6668057665e-1f, 1.4249322787e-1f,  -1.2420140846e-1f,
                         1.1676998740e-1f,  -1.1514610310e-1f, 7.0376836292e-2f};
  const i32 bits = as_i32(v);
  const f32 fraction = as_f32((bits & 0x007FFFFF) | 0x3F000000);  // in [1/2, 1)
  const i32 below = fraction < 0.707106781186547524f;
  const f32 e = __builtin_convertvector((bits >> 23) - 126 + below, f32);
  const f32 x = (fraction - 1.0f) + as_f32(as_i32(fraction) & below);
  f32 y = broadcast(P[8]);
  for (int power = 7; power >= 0; --power) y = multiply_add(y, x, broadcast(P[power]));
  const f32 square = x * x;
  y = multiply_add(y * x, square, e * -2.12194440e-4f);
  y = multiply_add(square, broadcast(-0.5f), y);
  return multiply_add(e, broadcast(0.693359375f), x + y);
}

// x in [0, 2 pi).
static inline void cosine_and_sine(f32 x, f32& cosine, f32& sine) {
  const i32 octant = (__builtin_convertvector(x * 1.27323954473516f, i32) + 1) & ~1;
  const f32 y = __builtin_convertvector(octant, f32);
  x = multiply_add(y, broadcast(-0.78515625f), x);
  x = multiply_add(y, broadcast(-2.4187564849853515625e-4f), x);
  x = multiply_add(y, broadcast(-3.77489497744594108e-8f), x);
  const f32 z = x * x;
  f32 c = multiply_add(broadcast(2.443315711809948e-5f), z, broadcast(-1.388731625493765e-3f));
  c = multiply_add(c, z, broadcast(4.166664568298827e-2f));
  c = multiply_add(c * z, z, z * -0.5f) + 1.0f;
  f32 s = multiply_add(broadcast(-1.9515295891e-4f), z, broadcast(8.3321608736e-3f));
  s = multiply_add(s, z, broadcast(-1.6666654611e-1f));
  s = multiply_add(s * z, x, x);
  const i32 straight = (octant & 2) == 0;
  sine = as_f32(as_i32(either(straight, s, c)) ^ ((octant & 4) << 29));
  cosine = as_f32(as_i32(either(straight, c, s)) ^ ((~(octant - 2) & 4) << 29));
}

// One vector of the first halves of LANES / HALF groups, one of the second halves.
static inline void load_halves(const float* at, f32& first, f32& second) {
#if defined(__AVX512F__)
  const auto joined = [](const float* low, const float* high) {
    return reinterpret_cast<f32>(
        _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(low)), _mm256_loadu_ps(high), 1));
  };
  first = joined(at, at + GROUP);
  second = joined(at + HALF, at + GROUP + HALF);
#else
  first = load(at);
  second = load(at + HALF);
#endif
}

static inline void store_halves(float* at, f32 first, f32 second) {
#if defined(__AVX512F__)
  const auto split = [](float* low, float* high, f32 v) {
    const auto both = reinterpret_cast<__m512>(v);
    _mm256_storeu_ps(low, _mm512_castps512_ps256(both));
    _mm256_storeu_ps(high, _mm512_extractf32x8_ps(both, 1));
  };
  split(at, at + GROUP, first);
  split(at + HALF, at + GROUP + HALF, second);
#else
  store(at, first);
  store(at + HALF, second);
#endif
}

// LANES / HALF groups of uniforms become normals.
static inline void box_muller(float* at) {
  f32 first, second, cosine, sine;
  load_halves(at, first, second);
  const f32 radius = square_root(natural_logarithm(1.0f - first) * -2.0f);
  cosine_and_sine(second * 6.283185307179586f, cosine, sine);
  // Adding zero makes -0 a 0, as torch's mean does.
  store_halves(at, radius * cosine + 0.0f, radius * sine + 0.0f);
}

void normals_of(float* out, int64_t groups) {
  constexpr int64_t AT_ONCE = LANES / HALF;
  int64_t group = 0;
  for (; group + AT_ONCE <= groups; group += AT_ONCE) box_muller(out + group * GROUP);
  if (group < groups) {
    float padded[AT_ONCE * GROUP] = {};
    memcpy(padded, out + group * GROUP, GROUP * sizeof *out);
    box_muller(padded);
    memcpy(out + group * GROUP, padded, GROUP * sizeof *out);
  }
}

#endif

}  // namespace

namespace fastddpm::FASTDDPM_ISA {

bool torch_normal(const TorchNormalArguments& a) {
#if defined(__AVX2__)
  Twister twister;
  for (int64_t k = 0; k < WORDS; ++k) {
    twister.words[k] = static_cast<uint32_t>(a.generator->words[k]);
  }
  // The count of words that are left begins with the next state's.
  twister.taken = WORDS - (a.generator->left - 1);
  temper(twister);
  draw_uniforms(twister, a.out, a.count);
  normals_of(a.out, a.count / GROUP);
  if (a.count % GROUP != 0) {
    draw_uniforms(twister, a.out + a.count - GROUP, GROUP);
    normals_of(a.out + a.count - GROUP, 1);
  }
  for (int64_t k = 0; k < WORDS; ++k) a.generator->words[k] = twister.words[k];
  a.generator->left = static_cast<int32_t>(WORDS - twister.taken + 1);
  a.generator->next = static_cast<uint64_t>(twister.taken);
  return true;
#else
  (void)a;
  return false;
#endif
}

}  // namespace fastddpm::FASTDDPM_ISA
