// The output of a piece: Y = A^T M A, bias, row, residual and divisor, and the statistics of each
// line, tile after tile:
//
//     mean = mean + d n_t / n,   M2 = M2 + M2_t + d^2 n_a n_t / n,   d = mean_t - mean
//
// (Chan, Golub and LeVeque 1979) for n_a numbers so far, n_t of the tile and n = n_a + n_t.
#pragma once

#include "../common/output.h"
#include "blocks.h"

namespace {

// LANES channels from c on of one tile of an image.
struct Place {
  int64_t sample, top, left, bottom, right;  // pixels of the image; the last two are exclusive
  int64_t c;
};

static inline void add_statistics(const fastddpm_conv3x3& conv, const Place& place, f32 sum) {
  const fastddpm_output& y = conv.y;
  const int64_t height = place.bottom - place.top, width = place.right - place.left;
  const f32 mean = sum * (1.0f / static_cast<float>(height * width));
  f32 squares = {};
  for (int64_t row = place.top; row < place.bottom; ++row) {
    const float* at = y.data +
                      ((place.sample * conv.height + row) * conv.width + place.left) * y.stride +
                      place.c;
    for (int64_t x = 0; x < width; ++x, at += y.stride) {
      const f32 deviation = load(at) - mean;
      squares = multiply_add(deviation, deviation, squares);
    }
  }
  const int64_t strips = quotient_up(conv.height, TILE);
  float* const to =
      y.statistics + (place.sample * strips + place.top / TILE) * 2 * y.stride + place.c;
  if (place.left > 0) {
    const float before = static_cast<float>(place.left * height);
    const float own = static_cast<float>(width * height), all = before + own;
    const f32 old = load(to), difference = mean - old;
    store(to, multiply_add(difference, broadcast(own / all), old));
    squares = multiply_add(difference * difference, broadcast(before * own / all), squares);
    store(to + y.stride, load(to + y.stride) + squares);
  } else {
    store(to, mean);
    store(to + y.stride, squares);
  }
}

// m: of the tile and its LANES channels. scale: of FLOAT16, or null.
static inline void write_tile(const fastddpm_conv3x3& conv, const Place& place, const float* m,
                              int64_t frequency, const float* scale, f32 offset) {
  f32 sum = {};
  const f32 factor = scale == nullptr ? broadcast(1) : load(scale);
  transform_output(m, frequency, [&](int64_t row, const f32(&values)[TILE]) {
    if (place.top + row >= place.bottom) return;
    const int64_t pixel = (place.sample * conv.height + place.top + row) * conv.width + place.left;
#pragma GCC unroll 4
    for (int64_t x = 0; x < TILE; ++x) {
      if (place.left + x >= place.right) break;
      sum = sum + write(conv.y, pixel + x, place.c, values[x] * factor, offset);
    }
  });
  if (conv.y.statistics != nullptr) add_statistics(conv, place, sum);
}

// Lines [first, end) of all images; m: of the first tile.
template <int WIDTH>
static void write_lines(const fastddpm_conv3x3& conv, const Blocks& blocks, int64_t step,
                        int64_t panel, int64_t first, int64_t end, const float* scale,
                        const float* m) {
  for (int64_t line = first; line < end; ++line) {
    const int64_t sample = line / blocks.strips, top = line % blocks.strips * TILE;
    const float* const row = row_of(conv.y.row, sample, step);
    f32 offset[WIDTH];
    for (int v = 0; v < WIDTH; ++v) offset[v] = offset_of(conv.y, row, panel * PANEL + v * LANES);
    for (int64_t tile = 0; tile < blocks.across; ++tile, m += PANEL) {
      const int64_t left = tile * TILE;
      Place place = {sample,
                     top,
                     left,
                     smaller(top + TILE, conv.height),
                     smaller(left + TILE, conv.width),
                     panel * PANEL};
      for (int v = 0; v < WIDTH; ++v, place.c += LANES) {
        write_tile(conv, place, m + v * LANES, blocks.m_frequency,
                   scale == nullptr ? nullptr : scale + v * LANES, offset[v]);
      }
    }
  }
}

}  // namespace
