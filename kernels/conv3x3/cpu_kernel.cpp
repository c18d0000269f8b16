// A 3x3 convolution of stride 1 by Winograd's F(4x4, 3x3), with what surrounds it in the network
// fused: its input is joined, normalised, activated or doubled as it is read, its output gets bias,
// row, residual and divisor, and the statistics of the next norm.
//
//     V = B^T d B        by the whole team, for a block of lines of tiles; a barrier
//     U = G g G^T        for each piece, a panel of output channels by some lines: six frequencies
//     M += V U           at a time, transformed from nine numbers a weight and multiplied at once
//     Y = A^T M A        then the piece's output
//
// Weights are nine numbers in memory, which a small batch is bound by, and 36 only in the cache.
// Specification: reference.py; the matrices: winograd.h.
#include "../common/kernels.h"
#include "input_transform.h"
#include "output_transform.h"

namespace {

using fastddpm::Team;

// The part of a convolution that one member multiplies.
struct Piece {
  const Blocks& blocks;
  PanelWeights weights;
  int64_t tiles;
  const float* v;  // of the first tile
  const Scratch& scratch;
};

// M += V U for six frequencies from `row` * 6 on and input channels [first, end).
template <int WIDTH>
void multiply(const Piece& piece, int row, int64_t first, int64_t end, const float* u,
              int64_t u_frequency) {
  const Blocks& blocks = piece.blocks;
  for (int64_t j = 0; j < POINTS; ++j, u += u_frequency) {
    const float* const v = piece.v + (row * POINTS + j) * blocks.v_frequency + first;
    float* const m = piece.scratch.m + (row * POINTS + j) * blocks.m_frequency;
    for_row_blocks(piece.tiles, [&](auto rows, int64_t tile) {
      constexpr int ROWS = decltype(rows)::value;
      float* const to = m + tile * PANEL;
      f32 sum[ROWS][WIDTH] = {};
      if (first > 0) {
        for (int r = 0; r < ROWS; ++r) {
          for (int w = 0; w < WIDTH; ++w) sum[r][w] = load(to + r * PANEL + w * LANES);
        }
      }
      multiply_panel(v + tile * blocks.v_tile, blocks.v_tile, u, end - first, sum);
      for (int r = 0; r < ROWS; ++r) {
        for (int w = 0; w < WIDTH; ++w) store(to + r * PANEL + w * LANES, sum[r][w]);
      }
    });
  }
}

template <int ROW, int WIDTH>
void multiply_row(const Piece& piece, int64_t first, int64_t end) {
  const Blocks& blocks = piece.blocks;
  transform_rows<ROW, WIDTH>(piece.weights, first, end, piece.scratch.u, blocks.u_frequency);
  multiply<WIDTH>(piece, ROW, first, end, piece.scratch.u, blocks.u_frequency);
}

template <int WIDTH>
void multiply_piece(const Piece& piece, int64_t packing) {
  const int64_t in = piece.blocks.in, depth = piece.blocks.depth;
  for (int64_t first = 0; first < in; first += depth) {
    const int64_t end = smaller(first + depth, in);
    if (packing == FASTDDPM_PACKING_TRANSFORMED) {
      for (int row = 0; row < POINTS; ++row) {
        const float* u = piece.weights.numbers + (row * POINTS * in + first) * PANEL;
        multiply<WIDTH>(piece, row, first, end, u, in * PANEL);
      }
      continue;
    }
    multiply_row<0, WIDTH>(piece, first, end);
    multiply_row<1, WIDTH>(piece, first, end);
    multiply_row<2, WIDTH>(piece, first, end);
    multiply_row<3, WIDTH>(piece, first, end);
    multiply_row<4, WIDTH>(piece, first, end);
    multiply_row<5, WIDTH>(piece, first, end);
  }
}

// Calls body(Rows<vectors>) for as many vectors as the panel has channels for.
template <int WIDTH = VECTORS, typename Body>
void with_width(int64_t channels, const Body& body) {
  if constexpr (WIDTH > 1) {
    if (channels <= (WIDTH - 1) * LANES) return with_width<WIDTH - 1>(channels, body);
  }
  body(Rows<WIDTH>{});
}

void run_conv3x3(const fastddpm_conv3x3& conv, const Team& team) {
  const Blocks blocks(conv, team.size);
  const Scratch scratch(blocks, team.scratch, team.member);
  for (int64_t first = 0; first < blocks.lines; first += blocks.block_lines) {
    const int64_t end = smaller(first + blocks.block_lines, blocks.lines);
    if (first > 0) team.barrier();
    transform_block(conv, blocks, team, scratch, first, end);
    team.barrier();
    const int64_t parts = quotient_up(end - first, blocks.piece_lines);
    for (int64_t k = team.claim(); k < blocks.panels * parts; k = team.claim()) {
      const int64_t panel = k / parts, part = k % parts;
      const int64_t from = first + (end - first) * part / parts;
      const int64_t to = first + (end - first) * (part + 1) / parts;
      const Piece piece = {blocks, panel_weights(conv.weights, blocks.in, conv.packing, panel),
                           (to - from) * blocks.across,
                           scratch.v + (from - first) * blocks.across * blocks.v_tile, scratch};
      with_width(conv.y.channels - panel * PANEL, [&](auto width) {
        constexpr int WIDTH = decltype(width)::value;
        multiply_piece<WIDTH>(piece, conv.packing);
        write_lines<WIDTH>(conv, blocks, team.step, panel, from, to, piece.weights.scale,
                           scratch.m);
      });
    }
  }
}

int64_t scratch_bytes(const fastddpm_conv3x3& conv, int32_t threads) {
  return Blocks(conv, threads).bytes(threads);
}

}  // namespace

namespace fastddpm::FASTDDPM_ISA {

extern const Operation conv3x3;
const Operation conv3x3 = operation<fastddpm_conv3x3, run_conv3x3, scratch_bytes>();
extern const Packing conv3x3_packing;
const Packing conv3x3_packing = {packed_bytes, pack};

}  // namespace fastddpm::FASTDDPM_ISA
