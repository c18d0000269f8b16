// The input of a block of lines, normalised and transformed: V = B^T d B.
//
// A piece of work is a run of lines of one image by a chunk of channels. Each row of pixels is read
// and normalised once, into a ring of the 6 rows that a line of tiles needs; the next line of tiles
// shares 2 of them.
#pragma once

#include "blocks.h"

namespace {

// Channels [first, end) of a part of the input, column `column` of V.
struct Chunk {
  int part;
  int64_t first, end, column;
};

static inline int64_t chunks_of(const fastddpm_input& x) {
  return quotient_up(x.channels[0], CHUNK) + quotient_up(x.channels[1], CHUNK);
}

static inline Chunk chunk_of(const fastddpm_input& x, int64_t index) {
  const int64_t before = quotient_up(x.channels[0], CHUNK);
  const int part = index < before ? 0 : 1;
  const int64_t first = (index - (part == 0 ? 0 : before)) * CHUNK;
  return {part, first, smaller(first + CHUNK, x.channels[part]),
          first + (part == 0 ? 0 : x.channels[0])};
}

static inline void clear(float* to, int64_t count) { memset(to, 0, count * sizeof(float)); }

// Row y of the (enlarged) input into `to`, which begins with the zeros left of the image.
static void read_row(const fastddpm_conv3x3& conv, int64_t image, int64_t y, const Chunk& chunk,
                     float* to) {
  to += CHUNK;
  if (y < 0 || y >= conv.height) return clear(to, conv.width * CHUNK);
  const int64_t doubled = conv.doubled ? 1 : 0;
  const int64_t width = conv.width >> doubled;
  const int64_t pixel = (image * (conv.height >> doubled) + (y >> doubled)) * width;
  for (int64_t x = 0; x < width; ++x) {
    read_part(conv.x, chunk.part, image, pixel + x, chunk.first, chunk.end, to - chunk.first);
    if (doubled) memcpy(to + CHUNK, to, CHUNK * sizeof(float));
    to += CHUNK << doubled;
  }
}

// The transforms of one line of tiles, whose first row of pixels is ring row 4 `line` (mod 6).
static void transform_line(const Blocks& blocks, const fastddpm_input& x, const Chunk& chunk,
                           int64_t line, const float* ring, float* v) {
  // Beyond the first part's last channel lies the second, which someone else writes.
  const bool followed = chunk.part == 0 && x.channels[1] > 0;
  for (int64_t tile = 0; tile < blocks.across; ++tile, v += blocks.v_tile) {
    for (int64_t c = 0; c < chunk.end - chunk.first; c += LANES) {
      const float* rows[POINTS];
      for (int64_t y = 0; y < POINTS; ++y) {
        rows[y] = ring + (line * TILE + y) % POINTS * blocks.row + tile * TILE * CHUNK + c;
      }
      const int64_t count = followed ? chunk.end - chunk.first - c : LANES;
      transform_input(rows, CHUNK, v + c, blocks.v_frequency, count);
    }
  }
}

// Lines [first, end) of one image; v: of the first.
static void transform_run(const fastddpm_conv3x3& conv, const Blocks& blocks, int64_t image,
                          int64_t first, int64_t end, const Chunk& chunk, float* ring, float* v) {
  clear(ring, POINTS * blocks.row);
  int64_t next = first * TILE - 1;  // the row of pixels to be read; row y lies at (y + 1) % 6
  for (int64_t line = first; line < end; ++line, v += blocks.across * blocks.v_tile) {
    for (; next < line * TILE + POINTS - 1; ++next) {
      read_row(conv, image, next, chunk, ring + (next + 1) % POINTS * blocks.row);
    }
    transform_line(blocks, conv.x, chunk, line, ring, v);
  }
}

// This member's part of V for lines [first, end) of all images.
static void transform_block(const fastddpm_conv3x3& conv, const Blocks& blocks,
                            const fastddpm::Team& team, const Scratch& scratch, int64_t first,
                            int64_t end) {
  const int64_t chunks = chunks_of(conv.x);
  int64_t piece = team.claim(), counted = 0;
  for (int64_t line = first; line < end;) {
    const int64_t image = line / blocks.strips, strip = line % blocks.strips;
    const int64_t lines = smaller(smaller(RUN_LINES, blocks.strips - strip), end - line);
    for (; piece < counted + chunks; piece = team.claim()) {
      const Chunk chunk = chunk_of(conv.x, piece - counted);
      float* const v = scratch.v + (line - first) * blocks.across * blocks.v_tile + chunk.column;
      transform_run(conv, blocks, image, strip, strip + lines, chunk, scratch.ring, v);
    }
    counted += chunks;
    line += lines;
  }
}

}  // namespace
