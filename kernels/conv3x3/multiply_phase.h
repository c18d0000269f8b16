// The products of one phase of a doubled map, whose kernel has four sums of the nine taps.
#pragma once

#include "multiply_many.h"

namespace {

// One direction of a phase: the frequencies that are not 0, [first, first + PHASE_POINTS).
struct Side {
  bool second;

  int first() const { return second ? 1 : 0; }
  int absent() const { return second ? 0 : POINTS - 1; }
  // Frequency i of a kernel of two taps is before() times the one and after() times the other: the
  // first phase's lie at 0 and 1, the second's at 1 and 2.
  float before(int i) const { return !second ? 1 : i == POINTS - 1 ? 0 : POINT[i]; }
  float after(int i) const {
    return !second ? POINT[i] : i == POINTS - 1 ? 1 : POINT[i] * POINT[i];
  }
};

// The sums of taps of a phase's kernel: of two neighbours in each direction,
// g [count][9][LANES] to sums [count][4][LANES].
template <typename Number>
static void sum_taps(const Number* g, int64_t count, Side down, Side across, float* sums) {
  for (int64_t k = 0; k < count; ++k, g += TAPS * LANES, sums += PHASE_TAPS * LANES) {
    f32 column[2][3];
#pragma GCC unroll 3
    for (int x = 0; x < 3; ++x) {
      const auto tap = [&](int y) { return number(g + (y * 3 + x) * LANES); };
      column[0][x] = down.second ? tap(0) + tap(1) : tap(0);
      column[1][x] = down.second ? tap(2) : tap(1) + tap(2);
    }
#pragma GCC unroll 2
    for (int y = 0; y < 2; ++y) {
      const f32* const line = column[y];
      store(sums + 2 * y * LANES, across.second ? line[0] + line[1] : line[0]);
      store(sums + (2 * y + 1) * LANES, across.second ? line[2] : line[1] + line[2]);
    }
  }
}

// Row `row` of U, u [6][count][PANEL], from the sums of WIDTH vectors of output channels.
template <int WIDTH>
static void transform_sums(const float* sums, int64_t count, int row, Side down, Side across,
                           float* u) {
  const float before = down.before(row), after = down.after(row);
  float weight[PHASE_POINTS][2];
  for (int j = 0; j < PHASE_POINTS; ++j) {
    weight[j][0] = across.before(across.first() + j);
    weight[j][1] = across.after(across.first() + j);
  }
  const int64_t vector = count * PHASE_TAPS * LANES;
  u += across.first() * U_FREQUENCY;
  for (int64_t k = 0; k < count; ++k, sums += PHASE_TAPS * LANES, u += PANEL) {
#pragma GCC unroll 4
    for (int w = 0; w < WIDTH; ++w) {
      const auto sum = [&](int at) { return load(sums + w * vector + at * LANES); };
      const f32 one = plus(before * sum(0), after, sum(2));
      const f32 other = plus(before * sum(1), after, sum(3));
#pragma GCC unroll 5
      for (int j = 0; j < PHASE_POINTS; ++j) {
        store(u + j * U_FREQUENCY + w * LANES, plus(weight[j][0] * one, weight[j][1], other));
      }
    }
  }
}

// The frequencies that no product writes are 0.
static void clear_absent(const Piece& piece, Side down, Side across) {
  float* m = piece.scratch.m;
  for (int64_t tile = 0; tile < piece.tiles; ++tile, m += piece.blocks.m_tile) {
    clear(m + down.absent() * POINTS * PANEL, POINTS * PANEL);
    for (int row = 0; row < POINTS; ++row)
      clear(m + (row * POINTS + across.absent()) * PANEL, PANEL);
  }
}

template <int WIDTH, typename Number>
static void multiply_phase(Piece& piece, int phase) {
  const Side down = {phase / 2 == 1}, across = {phase % 2 == 1};
  const int64_t in = piece.blocks.in, depth = piece.blocks.depth;
  float *const u = piece.scratch.u, *const sums = piece.scratch.sums;
  clear_absent(piece, down, across);
  for (int64_t first = 0; first < in; first += depth) {
    const int64_t count = smaller(depth, in - first), vector = count * PHASE_TAPS * LANES;
    for (int w = 0; w < WIDTH; ++w) {
      sum_taps(piece.weights<Number>(w, first), count, down, across, sums + w * vector);
    }
    for (int row = down.first(); row < down.first() + PHASE_POINTS; ++row) {
      transform_sums<WIDTH>(sums, count, row, down, across, u);
      multiply_row<WIDTH>(piece, row, first, first + count, u, U_FREQUENCY, across.first(),
                          across.first() + PHASE_POINTS);
    }
  }
}

}  // namespace
