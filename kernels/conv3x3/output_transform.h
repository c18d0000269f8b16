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

// The pixels of one tile, and what its numbers count for in the statistics of its line.
struct Tile {
  int64_t pixel, width, height;  // the first of all pixels; how many the map has
  float share;                   // 1 / n_t
  float of_mean, of_squares;     // n_t / n, n_a n_t / n; 0 for the first tile
  float* statistics;             // of the line, or null

  Tile(const fastddpm_conv3x3& conv, int64_t sample, int64_t strip, int64_t left) {
    const int64_t top = strip * TILE, strips = quotient_up(conv.height, TILE);
    pixel = (sample * conv.height + top) * conv.width + left;
    width = smaller(conv.width - left, TILE);
    height = smaller(conv.height - top, TILE);
    const float before = static_cast<float>(left * height);
    const float own = static_cast<float>(width * height), all = before + own;
    share = 1 / own;
    of_mean = own / all;
    of_squares = before * own / all;
    statistics = conv.y.statistics;
    if (statistics != nullptr) statistics += (sample * strips + strip) * 2 * conv.y.stride;
  }

  bool first() const { return of_squares == 0; }
};

// All that the numbers of a panel's vector of channels have in common.
struct Channels {
  int64_t c;
  f32 scale, offset;  // of FLOAT16; bias and row
};

// Four numbers of a row, which all but the last tiles of a line or an image have.
template <bool WHOLE>
static inline void write_pixels(const fastddpm_output& y, int64_t pixel, int64_t width,
                                const Channels& channels, f32 (&values)[TILE]) {
  float* const to = y.data + pixel * y.stride + channels.c;
#pragma GCC unroll 4
  for (int x = 0; x < TILE; ++x) {
    values[x] = multiply_add(values[x], channels.scale, channels.offset);
  }
  if (y.residual != nullptr) {
    const float* from = y.residual + pixel * y.residual_stride + channels.c;
#pragma GCC unroll 4
    for (int x = 0; x < TILE; ++x) {
      if (WHOLE || x < width) values[x] = values[x] + load(from + x * y.residual_stride);
    }
  }
  if (y.divisor != 1) {
    for (int x = 0; x < TILE; ++x) values[x] = values[x] / static_cast<float>(y.divisor);
  }
#pragma GCC unroll 4
  for (int x = 0; x < TILE; ++x) {
    if (WHOLE || x < width) store(to + x * y.stride, values[x]);
  }
}

static inline f32 sum_of(const f32 (&values)[TILE]) {
  return (values[0] + values[1]) + (values[2] + values[3]);
}

// Adds a tile to the statistics of its line.
template <bool WHOLE>
static inline void add_statistics(const Tile& tile, int64_t stride, int64_t c,
                                  const f32 (&values)[TILE][TILE]) {
  const auto add = [&](const auto& number) {
    f32 sums[TILE];
#pragma GCC unroll 4
    for (int row = 0; row < TILE; ++row) {
      f32 numbers[TILE];
#pragma GCC unroll 4
      for (int x = 0; x < TILE; ++x) {
        const bool inside = WHOLE || (row < tile.height && x < tile.width);
        numbers[x] = inside ? number(values[row][x]) : f32{};
      }
      sums[row] = sum_of(numbers);
    }
    return sum_of(sums);
  };
  const f32 mean = add([](f32 value) { return value; }) * tile.share;
  f32 squares = add([&](f32 value) { return (value - mean) * (value - mean); });
  float* const to = tile.statistics + c;
  if (tile.first()) {
    store(to, mean);
  } else {
    const f32 before = load(to), difference = mean - before;
    store(to, multiply_add(difference, broadcast(tile.of_mean), before));
    squares = multiply_add(difference * difference, broadcast(tile.of_squares), squares);
    squares = squares + load(to + stride);
  }
  store(to + stride, squares);
}

// m: of the tile and its LANES channels.
template <bool WHOLE>
static inline void write_tile(const fastddpm_output& y, int64_t row_pixels, const Tile& tile,
                              const Channels& channels, const float* m) {
  f32 values[TILE][TILE];
  transform_output(m, PANEL, [&](int row, const f32(&found)[TILE]) {
#pragma GCC unroll 4
    for (int x = 0; x < TILE; ++x) values[row][x] = found[x];
    if (!WHOLE && row >= tile.height) return;
    write_pixels<WHOLE>(y, tile.pixel + row * row_pixels, tile.width, channels, values[row]);
  });
  if (tile.statistics != nullptr) add_statistics<WHOLE>(tile, y.stride, channels.c, values);
}

// Asks for the pixels of a tile that will be written soon, so that no store waits for memory.
// Always inline: GCC drops calls of a function that does nothing but prefetch.
template <int WIDTH>
[[gnu::always_inline]] static inline void expect_tile(const fastddpm_output& y, int64_t row_pixels,
                                                      int64_t pixel, int64_t c) {
  for (int64_t row = 0; row < TILE; ++row, pixel += row_pixels) {
    for (int64_t x = 0; x < TILE; ++x) {
      for (int64_t v = 0; v < WIDTH * LANES; v += 16) {
        __builtin_prefetch(y.data + (pixel + x) * y.stride + c + v, 1, 2);
        if (y.residual == nullptr) continue;
        __builtin_prefetch(y.residual + (pixel + x) * y.residual_stride + c + v, 0, 2);
      }
    }
  }
}

// Lines [first, end) of all images; scale: of FLOAT16, or null; m: of the first tile.
template <int WIDTH>
static void write_lines(const fastddpm_conv3x3& conv, const Blocks& blocks, int64_t step,
                        int64_t panel, int64_t first, int64_t end, const float* scale,
                        const float* m) {
  const fastddpm_output y = conv.y;
  const int64_t c = panel * PANEL;
  for (int64_t line = first; line < end; ++line) {
    const int64_t sample = line / blocks.strips, strip = line % blocks.strips;
    const float* const row = row_of(y.row, sample, step);
    Channels channels[WIDTH];
    for (int v = 0; v < WIDTH; ++v) {
      channels[v] = {c + v * LANES, scale == nullptr ? broadcast(1) : load(scale + v * LANES),
                     offset_of(y, row, c + v * LANES)};
    }
    const int64_t after = line + 1, image = after / blocks.strips;
    const int64_t pixel = (image * conv.height + after % blocks.strips * TILE) * conv.width;
    for (int64_t k = 0; k < blocks.across; ++k, m += blocks.m_tile) {
      if (after < end) expect_tile<WIDTH>(y, conv.width, pixel + k * TILE, c);
      const Tile tile(conv, sample, strip, k * TILE);
      for (int v = 0; v < WIDTH; ++v) {
        if (tile.width == TILE && tile.height == TILE) {
          write_tile<true>(y, conv.width, tile, channels[v], m + v * LANES);
        } else {
          write_tile<false>(y, conv.width, tile, channels[v], m + v * LANES);
        }
      }
    }
  }
}

}  // namespace
