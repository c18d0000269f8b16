// A block of rows times one panel, any depth, with something done to each finished sum:
//
//     y[r, o] = sum_k a[r, k] b[k, o]
//
// The depth is cut into chunks, so that a chunk of the panel stays in L1 for all rows; chunks are
// added in their order, each summed from 0: shorter chains lose less to rounding. Where they are
// cut depends on nothing but the depth.
#pragma once

#include "gemm.h"

namespace {

constexpr int64_t CHUNK = 256;  // floats of the depth; 32 KB of a panel 32 wide

// Floats from one row of scratch to the next: a vector more than `floats`, as some kernels write
// whole vectors, and never a multiple of 4096 bytes.
static inline int64_t scratch_stride(int64_t floats) {
  const int64_t stride = (floats + 15) / 16 * 16 + 16;
  return stride % 1024 == 0 ? stride + 16 : stride;
}

// Rows of `depth` floats, `stride` apart.
struct RowBlock {
  const float* data;
  int64_t stride, count, depth;
};

// A function of its own: inlined beside other code its loop would run out of registers.
template <int ROWS, int WIDTH>
__attribute__((noinline)) static void product(const float* a, int64_t a_stride, const float* b,
                                              int64_t depth, const Ahead& ahead,
                                              f32 (&sum)[ROWS][WIDTH]) {
  f32 own[ROWS][WIDTH];
#pragma GCC unroll 14
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < WIDTH; ++v) own[r][v] = f32{};
  }
  multiply_panel(a, a_stride, b, depth, own, ahead);
#pragma GCC unroll 14
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < WIDTH; ++v) sum[r][v] = own[r][v];
  }
}

// Some rows of a panel, [chunk][PANEL], and what is read after them: as many rows of `next_row`
// bytes.
struct PanelChunk {
  const float* rows;
  const void* next;
  int64_t next_row;
};

// The rows of a panel that lies in memory as it is used, from row k on.
static inline PanelChunk chunk_of(const float* panel, int64_t k, int64_t chunk) {
  const float* rows = panel + k * PANEL;
  return {rows, rows + chunk * PANEL, PANEL * int64_t{sizeof(float)}};
}

// panel(k, chunk): the PanelChunk of rows [k, k + chunk). finish(row, sum): called once for every
// ROWS of the rows with their f32 sum[ROWS][WIDTH]. sums: [count][PANEL] of scratch.
template <int WIDTH, typename Panel, typename Finish>
static inline void multiply_rows(const RowBlock& rows, const Panel& panel, float* sums,
                                 const Finish& finish) {
  for (int64_t k = 0; k < rows.depth; k += CHUNK) {
    const int64_t chunk = rows.depth - k < CHUNK ? rows.depth - k : CHUNK;
    const PanelChunk b = panel(k, chunk);
    // Each block of rows asks for its share of the next chunk.
    Ahead ahead = {b.next, b.next_row / row_blocks(rows.count)};
    for_row_blocks(rows.count, [&](auto block, int64_t row) {
      constexpr int ROWS = decltype(block)::value;
      f32 sum[ROWS][WIDTH];
      product(rows.data + row * rows.stride + k, rows.stride, b.rows, chunk, ahead, sum);
      ahead.from = static_cast<const char*>(ahead.from) + chunk * ahead.step;
      float* const kept = sums + row * PANEL;
      for (int r = 0; k > 0 && r < ROWS; ++r) {
        for (int v = 0; v < WIDTH; ++v) {
          sum[r][v] = load(kept + r * PANEL + v * LANES) + sum[r][v];
        }
      }
      if (k + chunk == rows.depth) return finish(row, sum);
      for (int r = 0; r < ROWS; ++r) {
        for (int v = 0; v < WIDTH; ++v) store(kept + r * PANEL + v * LANES, sum[r][v]);
      }
    });
  }
}

}  // namespace
