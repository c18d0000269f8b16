// A 3x3 convolution of stride 1 by Winograd's F(4x4, 3x3), with what surrounds it in the network
// fused: its input is joined, normalised, activated or doubled as it is read, its output gets bias,
// row, residual and divisor, and the statistics of the next norm.
//
//     V = B^T d B        by the whole team, for a block of lines of tiles; a barrier
//     U = G g G^T        for each piece, a panel of output channels by some lines: six frequencies
//     M += V U           at a time, transformed from nine numbers a weight and multiplied at once
//     Y = A^T M A        then the piece's output
//
// Weights are nine numbers in memory, which a small batch is bound by, and 36 only in the cache. A
// large map that is doubled is convolved before it is, phase by phase: struct Map in blocks.h.
// Specification: reference.py; the matrices: winograd.h.
#include "../common/kernels.h"
#include "input_transform.h"
#include "multiply.h"
#include "output_transform.h"

namespace {

using fastddpm::Team;

static int64_t lines_of(const fastddpm_conv3x3& conv) { return Map(conv).lines(conv.batch); }

// Lines [begin, last) of all images.
static void convolve(const fastddpm_conv3x3& conv, const Blocks& blocks, const Team& team,
                     int64_t begin, int64_t last) {
  const Scratch scratch(blocks, team.scratch, team.member);
  for (int64_t first = begin; first < last; first += blocks.block_lines) {
    const int64_t end = smaller(first + blocks.block_lines, last);
    if (first > begin) team.barrier();
    transform_block(conv, blocks, team, scratch, first, end);
    team.barrier();
    const int64_t parts = quotient_up(end - first, blocks.piece_lines);
    for (int64_t k = team.claim(); k < blocks.panels * parts; k = team.claim()) {
      const int64_t panel = k % blocks.panels, part = k / blocks.panels;
      const int64_t from = first + (end - first) * part / parts;
      const int64_t to = first + (end - first) * (part + 1) / parts;
      const int64_t bytes = panel_bytes(blocks.in, conv.packing),
                    tiles = (to - from) * blocks.across;
      const char* const weights = static_cast<const char*>(conv.weights) + panel * bytes;
      // This member's next panel, most likely.
      const int64_t next = (panel + team.size) % blocks.panels - panel;
      const int64_t steps = blocks.map.products() * blocks.in * row_blocks(tiles, blocks.rows);
      Piece piece = {blocks,
                     scratch,
                     weights,
                     tiles,
                     scratch.v + blocks.v_part(part, from - first),
                     {weights + next * bytes, quotient_up(bytes, steps)}};
      with_width(conv.y.channels - panel * PANEL, [&](auto width) {
        constexpr int WIDTH = decltype(width)::value;
        const float* const scale = panel_scale(weights, conv.packing);
        for (int phase = 0; phase < blocks.map.phases; ++phase) {
          multiply<WIDTH>(piece, conv.packing, phase);
          write_lines<WIDTH>(conv, blocks, team.step, panel, phase, from, to, scale, scratch.m);
        }
      });
    }
  }
}

static int64_t most_lines(const fastddpm_conv3x3& conv, int64_t threads) {
  return quotient_up(lines_of(conv), threads);
}

// Whether each member convolves lines of its own, all output channels of them. What it reads, it
// has written itself, mostly: cores whose caches are far from one another lose nothing. It needs
// enough tiles to be worth the transform of all weights, and shares that differ little; others are
// multiplied by all together.
static bool splits_lines(const fastddpm_conv3x3& conv, int64_t threads) {
  const int64_t lines = lines_of(conv);
  const bool even = most_lines(conv, threads) * threads * 4 <= lines * 5;
  return threads > 1 && even && lines * tiles_of(Map(conv).width) >= MEMBER_TILES * threads;
}

void run_conv3x3(const fastddpm_conv3x3& conv, const Team& team) {
  const int64_t lines = lines_of(conv);
  if (!splits_lines(conv, team.size)) {
    return convolve(conv, Blocks(conv, lines, team.size), team, 0, lines);
  }
  const Blocks blocks(conv, most_lines(conv, team.size), 1);
  fastddpm::Meeting nobody(1);
  const Team alone = {0, 1, team.scratch + team.member * blocks.bytes(1), team.step, &nobody};
  convolve(conv, blocks, alone, team.begin(lines), team.end(lines));
}

int64_t scratch_bytes(const fastddpm_conv3x3& conv, int32_t threads) {
  if (splits_lines(conv, threads)) {
    return threads * Blocks(conv, most_lines(conv, threads), 1).bytes(1);
  }
  return Blocks(conv, lines_of(conv), threads).bytes(threads);
}

}  // namespace

namespace fastddpm::FASTDDPM_ISA {

extern const Operation conv3x3;
const Operation conv3x3 = operation<fastddpm_conv3x3, run_conv3x3, scratch_bytes>();
extern const Packing conv3x3_packing;
const Packing conv3x3_packing = {packed_bytes, pack};

}  // namespace fastddpm::FASTDDPM_ISA
