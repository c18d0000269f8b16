// The output of a piece: Y = A^T M A, bias, row, residual and divisor, and the statistics of each
// strip, tile after tile:
//
//     mean = mean + d n_t / n,   M2 = M2 + M2_t + d^2 n_a n_t / n,   d = mean_t - mean
//
// (Chan, Golub and LeVeque 1979) for n_a numbers so far, n_t of the tile and n = n_a + n_t.
#pragma once

#include "../common/output.h"
#include "blocks.h"

namespace {

// What a tile's numbers count for in the statistics of one strip.
struct Share {
  float* statistics = nullptr;  // of the strip
  float part;                   // 1 / n_t
  float of_mean, of_squares;    // n_t / n, n_a n_t / n; 0 for the first numbers

  Share() = default;
  Share(float* strip, int64_t numbers_before, int64_t numbers) : statistics(strip) {
    const float before = static_cast<float>(numbers_before);
    const float own = static_cast<float>(numbers), all = before + own;
    part = 1 / own;
    of_mean = own / all;
    of_squares = before * own / all;
  }

  bool first() const { return of_squares == 0; }
};

// A line of tiles in the output. The pixels of one phase are every second one, and lie in two
// strips; they count there after those of the phases before.
struct Line {
  int64_t pixel, across, down;  // the first of all pixels; from one to the next in a row and column
  int64_t width, height;        // pixels of the phase
  int64_t before;               // numbers of a row of pixels that other phases have
  float *upper, *lower;         // statistics of the strips, or null; of one strip: upper

  Line(const fastddpm_conv3x3& conv, const Map& map, int phase, int64_t line) {
    const int64_t lines = tiles_of(map.height), strips = tiles_of(conv.height);
    const int64_t image = line / lines, top = line % lines * TILE;
    across = map.phases == 1 ? 1 : 2;
    down = across * conv.width;
    pixel = (image * conv.height + top * across + phase / 2) * conv.width + phase % 2;
    width = map.width;
    height = smaller(map.height - top, TILE);
    before = phase * map.width;
    upper = conv.y.statistics;
    if (upper != nullptr) upper += (image * strips + top / TILE * across) * 2 * conv.y.stride;
    const bool two = upper != nullptr && map.phases > 1 && height > TILE / 2;
    lower = two ? upper + 2 * conv.y.stride : nullptr;
  }
};

// One tile of a line: its first pixel, how many of its pixels the map has, and what its numbers
// count for.
struct Tile {
  int64_t pixel, across, down, width, height;
  Share upper, lower;

  Tile(const Line& line, int64_t left)
      : pixel(line.pixel + left * line.across), across(line.across), down(line.down) {
    width = smaller(line.width - left, TILE);
    height = line.height;
    const int64_t before = line.before + left;
    const int64_t rows = line.across == 1 ? height : smaller(height, TILE / 2);
    if (line.upper != nullptr) upper = Share(line.upper, before * rows, width * rows);
    if (line.lower == nullptr) return;
    lower = Share(line.lower, before * (height - rows), width * (height - rows));
  }

  bool whole() const { return width == TILE && height == TILE; }
};

// All that the numbers of a panel's vector of channels have in common.
struct Channels {
  int64_t c;
  f32 scale, offset;  // of FLOAT16; bias and row
};

// Four numbers of a row, which all but the last tiles of a line or an image have; the pixels are
// `across` from one another.
template <bool WHOLE>
static inline void write_pixels(const fastddpm_output& y, int64_t pixel, int64_t across,
                                int64_t width, const Channels& channels, f32 (&values)[TILE]) {
  float* const to = y.data + pixel * y.stride + channels.c;
  const int64_t stride = across * y.stride, residual_stride = across * y.residual_stride;
#pragma GCC unroll 4
  for (int x = 0; x < TILE; ++x) {
    values[x] = multiply_add(values[x], channels.scale, channels.offset);
  }
  if (y.residual != nullptr) {
    const float* from = y.residual + pixel * y.residual_stride + channels.c;
#pragma GCC unroll 4
    for (int x = 0; x < TILE; ++x) {
      if (WHOLE || x < width) values[x] = values[x] + load(from + x * residual_stride);
    }
  }
  if (y.divisor != 1) {
    for (int x = 0; x < TILE; ++x) values[x] = values[x] / static_cast<float>(y.divisor);
  }
#pragma GCC unroll 4
  for (int x = 0; x < TILE; ++x) {
    if (WHOLE || x < width) store(to + x * stride, values[x]);
  }
}

// Sum and squares of a tile's numbers less one of them: their deviations' squares follow without a
// second look at the numbers, and without a loss of digits, as that one lies among them.
struct Moments {
  f32 origin = {}, sum = {}, squares = {};

  // Numbers of a row, of which the tile has `width`; the first numbers, or more of them.
  template <bool WHOLE>
  void add(const f32 (&values)[TILE], int64_t width, bool first) {
    if (first) origin = values[0];
    f32 d[TILE];
#pragma GCC unroll 4
    for (int x = 0; x < TILE; ++x) d[x] = WHOLE || x < width ? values[x] - origin : f32{};
    sum = sum + ((d[0] + d[1]) + (d[2] + d[3]));
    squares =
        squares + (multiply_add(d[0], d[0], d[1] * d[1]) + multiply_add(d[2], d[2], d[3] * d[3]));
  }

  // To the statistics of a strip, for the vector of channels that begins at c.
  void add_to(const Share& share, int64_t stride, int64_t c) const {
    const f32 shift = sum * share.part, mean = origin + shift;
    // Never below 0 by rounding.
    f32 deviations = maximum(f32{}, multiply_add(-sum, shift, squares));
    float* const to = share.statistics + c;
    if (share.first()) {
      store(to, mean);
    } else {
      const f32 before = load(to), difference = mean - before;
      store(to, multiply_add(difference, broadcast(share.of_mean), before));
      deviations = multiply_add(difference * difference, broadcast(share.of_squares), deviations);
      deviations = deviations + load(to + stride);
    }
    store(to + stride, deviations);
  }
};

// m: of the tile and its LANES channels.
template <bool WHOLE, bool PHASED>
static inline void write_tile(const fastddpm_output& y, const Tile& tile, const Channels& channels,
                              const float* m) {
  constexpr int STRIP = PHASED ? TILE / 2 : TILE;  // rows of a strip
  Moments upper, lower;
  transform_output(m, PANEL, [&](int row, f32(&values)[TILE]) {
    if (!WHOLE && row >= tile.height) return;
    write_pixels<WHOLE>(y, tile.pixel + row * tile.down, tile.across, tile.width, channels, values);
    if (tile.upper.statistics == nullptr) return;
    Moments& own = row < STRIP ? upper : lower;
    own.template add<WHOLE>(values, tile.width, row % STRIP == 0);
  });
  if (tile.upper.statistics != nullptr) upper.add_to(tile.upper, y.stride, channels.c);
  if (tile.lower.statistics != nullptr) lower.add_to(tile.lower, y.stride, channels.c);
}

// Asks for the pixels of a tile that will be written soon, so that no store waits for memory.
// Always inline: GCC drops calls of a function that does nothing but prefetch.
template <int WIDTH>
[[gnu::always_inline]] static inline void expect_tile(const fastddpm_output& y, const Line& line,
                                                      int64_t left, int64_t c) {
  for (int64_t row = 0; row < TILE; ++row) {
    for (int64_t x = left; x < left + TILE; ++x) {
      const int64_t pixel = line.pixel + row * line.down + x * line.across;
      for (int64_t v = 0; v < WIDTH * LANES; v += 16) {
        __builtin_prefetch(y.data + pixel * y.stride + c + v, 1, 2);
        if (y.residual == nullptr) continue;
        __builtin_prefetch(y.residual + pixel * y.residual_stride + c + v, 0, 2);
      }
    }
  }
}

// One phase of lines [first, end) of all images; scale: of FLOAT16, or null; m: of the first tile.
template <int WIDTH, bool PHASED>
static void write_phase(const fastddpm_conv3x3& conv, const Blocks& blocks, int64_t step,
                        int64_t panel, int phase, int64_t first, int64_t end, const float* scale,
                        const float* m) {
  const fastddpm_output y = conv.y;
  const int64_t c = panel * PANEL;
  Line own(conv, blocks.map, phase, first);
  for (int64_t line = first; line < end; ++line) {
    const Line next(conv, blocks.map, phase, line + 1);
    const float* const row = row_of(y.row, line / blocks.image_lines, step);
    Channels channels[WIDTH];
    for (int v = 0; v < WIDTH; ++v) {
      channels[v] = {c + v * LANES, scale == nullptr ? broadcast(1) : load(scale + v * LANES),
                     offset_of(y, row, c + v * LANES)};
    }
    for (int64_t left = 0; left < own.width; left += TILE, m += blocks.m_tile) {
      if (line + 1 < end) expect_tile<WIDTH>(y, next, left, c);
      const Tile tile(own, left);
      for (int v = 0; v < WIDTH; ++v) {
        if (tile.whole()) {
          write_tile<true, PHASED>(y, tile, channels[v], m + v * LANES);
        } else {
          write_tile<false, PHASED>(y, tile, channels[v], m + v * LANES);
        }
      }
    }
    own = next;
  }
}

template <int WIDTH>
static void write_lines(const fastddpm_conv3x3& conv, const Blocks& blocks, int64_t step,
                        int64_t panel, int phase, int64_t first, int64_t end, const float* scale,
                        const float* m) {
  const auto write = blocks.map.phases > 1 ? write_phase<WIDTH, true> : write_phase<WIDTH, false>;
  write(conv, blocks, step, panel, phase, first, end, scale, m);
}

}  // namespace
