// Between torch's order, [B, C, P], and maps, [B, P, C]: a transposition with a factor, an offset
// and a divisor on its way. Specification: reference.py.
#include "../common/kernels.h"
#include "../common/simd.h"

namespace {

using fastddpm::Team;

// Pixels that one piece of work takes. While a channel's run is read or written, the block's part
// of the map stays in the cache.
constexpr int64_t PIXELS = 128;

static inline f32 convert(const fastddpm_layout& a, f32 v, float divisor) {
  v = v * static_cast<float>(a.factor) + static_cast<float>(a.offset);
  return a.divisor == nullptr ? v : v / divisor;
}

// `planes` and `map` begin at the block's first pixel.
void into_map(const fastddpm_layout& a, const float* planes, float* map, int64_t pixels,
              float divisor) {
  for (int64_t p = 0; p < pixels; p += LANES) {
    const int64_t count = pixels - p < LANES ? pixels - p : LANES;
    for (int64_t c = 0; c < a.channels; ++c) {
      const f32 v = convert(a, load(planes + c * a.pixels + p, count), divisor);
      for (int64_t lane = 0; lane < count; ++lane) map[(p + lane) * a.stride + c] = v[lane];
    }
  }
}

void from_map(const fastddpm_layout& a, float* planes, const float* map, int64_t pixels,
              float divisor) {
  for (int64_t p = 0; p < pixels; p += LANES) {
    const int64_t count = pixels - p < LANES ? pixels - p : LANES;
    for (int64_t c = 0; c < a.channels; ++c) {
      f32 v = {};
      for (int64_t lane = 0; lane < count; ++lane) v[lane] = map[(p + lane) * a.stride + c];
      store(planes + c * a.pixels + p, convert(a, v, divisor), count);
    }
  }
}

void run_layout(const fastddpm_layout& a, const Team& team) {
  const float divisor = a.divisor == nullptr ? 1.0f : a.divisor[team.step];
  const int64_t blocks = (a.pixels + PIXELS - 1) / PIXELS, pieces = a.batch * blocks;
  for (int64_t piece = team.begin(pieces); piece < team.end(pieces); ++piece) {
    const int64_t sample = piece / blocks, first = piece % blocks * PIXELS;
    const int64_t count = a.pixels - first < PIXELS ? a.pixels - first : PIXELS;
    const int64_t in_planes = sample * a.channels * a.pixels + first;
    const int64_t in_map = (sample * a.pixels + first) * a.stride;
    if (a.into_map != 0) {
      into_map(a, a.from + in_planes, a.to + in_map, count, divisor);
    } else {
      from_map(a, a.to + in_planes, a.from + in_map, count, divisor);
    }
  }
}

}  // namespace

namespace fastddpm::FASTDDPM_ISA {

extern const Operation layout;
const Operation layout = operation<fastddpm_layout, run_layout, no_scratch<fastddpm_layout>>();

}  // namespace fastddpm::FASTDDPM_ISA
