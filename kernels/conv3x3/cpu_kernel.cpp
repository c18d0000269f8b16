// A 3x3 convolution of stride 1 by Winograd's F(4x4, 3x3), with what surrounds it in the network
// fused: its input is joined, normalised, activated or doubled as it is read, its output gets bias,
// row, residual and divisor, and the statistics of the next norm.
//
//     V = B^T d B        for a block of lines of tiles, by one member or by all, who then meet
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

static int64_t most_lines(const fastddpm_conv3x3& conv, int64_t threads) {
  return quotient_up(lines_of(conv), threads);
}

// A block of lines [first, end) of all images.
struct Block {
  const Blocks& blocks;
  int64_t first, end;

  int64_t parts() const { return quotient_up(end - first, blocks.piece_lines); }
  int64_t pieces() const { return blocks.panels * parts(); }
  int64_t line(int64_t part) const { return first + (end - first) * part / parts(); }
};

// Piece `index` of a block by one member, whose next piece is most likely that of `ahead` panels
// further on.
static void convolve_piece(const fastddpm_conv3x3& conv, const Block& block, int64_t index,
                           const Scratch& scratch, int64_t step, int64_t ahead) {
  const Blocks& blocks = block.blocks;
  const int64_t panel = index % blocks.panels, part = index / blocks.panels;
  const int64_t from = block.line(part), to = block.line(part + 1);
  const int64_t bytes = panel_bytes(blocks.in, conv.packing), tiles = (to - from) * blocks.across;
  const char* const weights = static_cast<const char*>(conv.weights) + panel * bytes;
  const int64_t next = (panel + ahead) % blocks.panels - panel;
  const int64_t steps = blocks.map.products() * blocks.in * row_blocks(tiles, blocks.rows);
  Piece piece = {blocks,
                 scratch,
                 weights,
                 tiles,
                 scratch.v + blocks.v_part(part, from - block.first),
                 {weights + next * bytes, quotient_up(bytes, steps)}};
  with_width(conv.y.channels - panel * PANEL, [&](auto width) {
    constexpr int WIDTH = decltype(width)::value;
    const float* const scale = panel_scale(weights, conv.packing);
    for (int phase = 0; phase < blocks.map.phases; ++phase) {
      multiply<WIDTH>(piece, conv.packing, phase);
      write_lines<WIDTH>(conv, blocks, step, panel, phase, from, to, scale, scratch.m);
    }
  });
}

// One block after the other, by all members together.
static void convolve_together(const fastddpm_conv3x3& conv, const Team& team) {
  const int64_t lines = lines_of(conv);
  const Blocks blocks(conv, lines, team.size);
  const Scratch scratch(blocks, team.scratch, team.member);
  const auto claim = [&] { return team.claim(); };
  for (int64_t first = 0; first < lines; first += blocks.block_lines) {
    const Block block = {blocks, first, smaller(first + blocks.block_lines, lines)};
    if (first > 0) team.barrier();
    transform_block(conv, blocks, scratch, block.first, block.end, claim);
    team.barrier();
    for (int64_t piece = claim(); piece < block.pieces(); piece = claim()) {
      convolve_piece(conv, block, piece, scratch, team.step, team.size);
    }
  }
}

// Each member has blocks of its own, all output channels of them. What it reads, it has written
// itself, mostly: cores whose caches are far from one another lose nothing.
static void convolve_apart(const fastddpm_conv3x3& conv, const Team& team) {
  const int64_t lines = lines_of(conv), most = most_lines(conv, team.size);
  const Blocks blocks(conv, most, 1);
  const int64_t count = team.size * quotient_up(most, blocks.block_lines);
  const auto block_of = [&](int64_t index) -> Block {
    return {blocks, lines * index / count, lines * (index + 1) / count};
  };
  const auto scratch_of = [&](int64_t member) {
    return Scratch(blocks, team.scratch + member * blocks.bytes(1), 0);
  };
  const Scratch own = scratch_of(team.member);
  team.share(
      count,
      [&](int64_t index) {
        const Block block = block_of(index);
        int64_t next = 0;
        transform_block(conv, blocks, own, block.first, block.end, [&] { return next++; });
        return block.pieces();
      },
      [&](int64_t owner, int64_t index, int64_t piece) {
        Scratch scratch = own;
        scratch.v = scratch_of(owner).v;
        convolve_piece(conv, block_of(index), piece, scratch, team.step, 1);
      });
}

// Whether members have blocks of their own. It takes enough tiles to be worth the transform of all
// weights, and shares that differ little.
static bool convolves_apart(const fastddpm_conv3x3& conv, int64_t threads) {
  const int64_t lines = lines_of(conv);
  const bool even = most_lines(conv, threads) * threads * 4 <= lines * 5;
  return threads > 1 && even && lines * tiles_of(Map(conv).width) >= MEMBER_TILES * threads;
}

void run_conv3x3(const fastddpm_conv3x3& conv, const Team& team) {
  (convolves_apart(conv, team.size) ? convolve_apart : convolve_together)(conv, team);
}

int64_t scratch_bytes(const fastddpm_conv3x3& conv, int32_t threads) {
  if (convolves_apart(conv, threads)) {
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
