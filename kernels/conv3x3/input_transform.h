// The input of a block of lines, normalised and transformed: V = B^T d B.
//
// A piece of work is a run of lines of one image by a chunk of channels. Each row of pixels is read
// and normalised once, into a ring of the 6 rows that a line of tiles needs; the next line of tiles
// shares 2 of them.
#pragma once

#include "blocks.h"

namespace {

// Joined channels [first, last), so far as there are any, of row y of one part of the (enlarged)
// input into `to`.
static void read_part_of_row(const fastddpm_conv3x3& conv, const Map& map, int part, int64_t image,
                             int64_t y, int64_t first, int64_t last, float* to) {
  const fastddpm_input& x = conv.x;
  const int64_t before = part == 0 ? 0 : x.channels[0];
  const int64_t begin = larger(first - before, 0);
  const int64_t end = smaller(last - before, x.channels[part]);
  if (begin >= end) return;
  const int64_t width = map.width >> map.doubled;
  const int64_t pixel = (image * (map.height >> map.doubled) + (y >> map.doubled)) * width;
  // The next row is asked for while this one is computed on.
  read_pixels(x, part, image, pixel, width, begin, end, to + begin + before - first,
              RING_PIXEL << map.doubled, width);
}

// Row y of the (enlarged) input into `to`, which begins with the zeros left of the image.
static void read_row(const fastddpm_conv3x3& conv, const Map& map, int64_t image, int64_t y,
                     int64_t first, int64_t last, float* to) {
  to += RING_PIXEL;
  if (y < 0 || y >= map.height) return clear(to, map.width * RING_PIXEL);
  read_part_of_row(conv, map, 0, image, y, first, last, to);
  // The second part overwrites what the first has written beyond its end.
  read_part_of_row(conv, map, 1, image, y, first, last, to);
  for (int64_t x = 0; map.doubled && x < map.width; x += 2) {
    memcpy(to + (x + 1) * RING_PIXEL, to + x * RING_PIXEL, CHUNK * sizeof(float));
  }
}

// The transforms of one line of tiles, whose first row of pixels is ring row 4 `line` (mod 6), for
// `channels` of a chunk.
static void transform_line(const Blocks& blocks, int64_t channels, int64_t line, const float* ring,
                           Place& place, float* v) {
  const float* rows[POINTS];
  for (int64_t y = 0; y < POINTS; ++y) rows[y] = ring + (line * TILE + y) % POINTS * blocks.row;
  for (int64_t tile = 0; tile < blocks.across; ++tile, place.next()) {
    float* to = v + place.floats();
    for (int64_t c = 0; c < channels; c += GROUP, to += blocks.v_group) {
      for (int64_t k = 0; k < GROUP && c + k < channels; k += LANES) {
        transform_input(rows, tile * TILE * RING_PIXEL + c + k, RING_PIXEL, to + k,
                        blocks.v_frequency);
      }
    }
  }
}

// A chunk of channels of lines [begin, end) of one image; place: of the first.
static void transform_run(const fastddpm_conv3x3& conv, const Blocks& blocks, int64_t image,
                          int64_t begin, int64_t end, int64_t first, float* ring, Place place,
                          float* v) {
  const int64_t last = smaller(first + blocks.chunk, blocks.in);
  clear(ring, POINTS * blocks.row);
  int64_t next = begin * TILE - 1;  // the row of pixels to be read; row y lies at (y + 1) % 6
  for (int64_t line = begin; line < end; ++line) {
    for (; next < line * TILE + POINTS - 1; ++next) {
      read_row(conv, blocks.map, image, next, first, last, ring + (next + 1) % POINTS * blocks.row);
    }
    transform_line(blocks, last - first, line, ring, place, v);
  }
}

// V for lines [first, end) of all images, the pieces that claim() gives this member.
template <typename Claim>
static void transform_block(const fastddpm_conv3x3& conv, const Blocks& blocks,
                            const Scratch& scratch, int64_t first, int64_t end,
                            const Claim& claim) {
  const int64_t chunks = quotient_up(blocks.in, blocks.chunk);
  int64_t piece = claim(), counted = 0;
  for (int64_t line = first; line < end;) {
    const int64_t image = line / blocks.image_lines, own = line % blocks.image_lines;
    const int64_t lines = smaller(smaller(RUN_LINES, blocks.image_lines - own), end - line);
    for (; piece < counted + chunks; piece = claim()) {
      const int64_t channel = (piece - counted) * blocks.chunk;
      transform_run(conv, blocks, image, own, own + lines, channel, scratch.ring,
                    Place(blocks, end - first, line - first),
                    scratch.v + blocks.v_channel(channel));
    }
    counted += chunks;
    line += lines;
  }
}

}  // namespace
