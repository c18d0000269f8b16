// Between torch's order, [B, C, P], and maps, [B, P, C]: a transposition with a factor, an offset
// and a divisor on its way. Specification: reference.py.
//
// Maps in torch's order are images, of one channel to a few: so the tile that is turned around is
// 4 x 4 in every instruction set.
#include <cstring>

#include "../common/kernels.h"

namespace {

using fastddpm::Team;

constexpr int64_t SIDE = 4;
constexpr int64_t PIXELS = 128;  // that one piece of work takes

typedef float f32x4 __attribute__((vector_size(16)));

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// `count` numbers; the branch is there because a copy of any other length is a call.
static inline f32x4 load(const float* from, int64_t count) {
  f32x4 v = {};
  if (count == SIDE) {
    memcpy(&v, from, sizeof v);
  } else {
    memcpy(&v, from, count * sizeof(float));
  }
  return v;
}

static inline void store(float* to, f32x4 v, int64_t count) {
  if (count == SIDE) {
    memcpy(to, &v, sizeof v);
  } else {
    memcpy(to, &v, count * sizeof(float));
  }
}

static inline void transpose(f32x4 (&rows)[SIDE]) {
  const f32x4 a = __builtin_shufflevector(rows[0], rows[2], 0, 4, 1, 5);
  const f32x4 b = __builtin_shufflevector(rows[1], rows[3], 0, 4, 1, 5);
  const f32x4 c = __builtin_shufflevector(rows[0], rows[2], 2, 6, 3, 7);
  const f32x4 d = __builtin_shufflevector(rows[1], rows[3], 2, 6, 3, 7);
  rows[0] = __builtin_shufflevector(a, b, 0, 4, 1, 5);
  rows[1] = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  rows[2] = __builtin_shufflevector(c, d, 0, 4, 1, 5);
  rows[3] = __builtin_shufflevector(c, d, 2, 6, 3, 7);
}

static inline f32x4 convert(const fastddpm_layout& a, f32x4 v, float divisor) {
  v = v * static_cast<float>(a.factor) + static_cast<float>(a.offset);
  return a.divisor.data == nullptr ? v : v / divisor;
}

// One tile, of so many channels and pixels; `planes` and `map` begin at its corner. A pixel of the
// map has room for whole vectors.
static inline void into_map(const fastddpm_layout& a, const float* planes, float* map,
                            int64_t channels, int64_t pixels, float divisor) {
  f32x4 rows[SIDE] = {};
  for (int64_t c = 0; c < SIDE; ++c) {
    if (c < channels) rows[c] = convert(a, load(planes + c * a.pixels, pixels), divisor);
  }
  transpose(rows);
  for (int64_t p = 0; p < SIDE; ++p) {
    if (p < pixels) store(map + p * a.stride, rows[p], SIDE);
  }
}

static inline void from_map(const fastddpm_layout& a, float* planes, const float* map,
                            int64_t channels, int64_t pixels, float divisor) {
  f32x4 rows[SIDE] = {};
  for (int64_t p = 0; p < SIDE; ++p) {
    if (p < pixels) rows[p] = load(map + p * a.stride, SIDE);
  }
  transpose(rows);
  for (int64_t c = 0; c < SIDE; ++c) {
    if (c < channels) store(planes + c * a.pixels, convert(a, rows[c], divisor), pixels);
  }
}

static inline float divisor_of(const fastddpm_layout& a, int64_t sample, int64_t step) {
  const fastddpm_row& row = a.divisor;
  if (row.data == nullptr) return 1;
  return row.data[sample * row.sample_stride + step * row.step_stride];
}

void run_layout(const fastddpm_layout& a, const Team& team) {
  const int64_t blocks = (a.pixels + PIXELS - 1) / PIXELS, pieces = a.batch * blocks;
  team.share(pieces, [&](int64_t piece) {
    const int64_t sample = piece / blocks, first = piece % blocks * PIXELS;
    const int64_t count = smaller(PIXELS, a.pixels - first);
    const float divisor = divisor_of(a, sample, team.step);
    for (int64_t c = 0; c < a.channels; c += SIDE) {
      for (int64_t p = first; p < first + count; p += SIDE) {
        const int64_t in_planes = (sample * a.channels + c) * a.pixels + p;
        const int64_t in_map = (sample * a.pixels + p) * a.stride + c;
        const int64_t channels = smaller(SIDE, a.channels - c);
        const int64_t pixels = smaller(SIDE, first + count - p);
        if (a.into_map != 0) {
          into_map(a, a.from + in_planes, a.to + in_map, channels, pixels, divisor);
        } else {
          from_map(a, a.to + in_planes, a.from + in_map, channels, pixels, divisor);
        }
      }
    }
  });
}

}  // namespace

namespace fastddpm::FASTDDPM_ISA {

extern const Operation layout;
const Operation layout = operation<fastddpm_layout, run_layout, no_scratch<fastddpm_layout>>();

}  // namespace fastddpm::FASTDDPM_ISA
