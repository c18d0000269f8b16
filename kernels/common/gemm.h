// The inner product of all convolutions and linear layers: a few rows times a panel of columns.
//
//     sum[r][v] += a[r][k] b[k][v]     k = 0, 1, ..., K - 1 in this order, one multiply-add each
//
// Every element is one chain of multiply-adds in the order of k, so a result depends neither on how
// rows are put together nor on how K is cut. A panel of B is PANEL columns wide and lies k by k.
#pragma once

#include "simd.h"

namespace {

// Vectors a panel is wide, the most rows that fit the registers beside it: 28, 12 or 24 sums, and
// how many k the inner loop takes in a turn. 12 sums take 20 instructions a k, and each instruction
// more costs where two threads share a core: a turn of 1 ran at 76 % of the peak there, of 8 at
// 86 %, and both at 99 % of a core of their own (AVX2 on Zen 3, November 2026).
#if defined(__AVX512F__)
constexpr int VECTORS = 2, MAX_ROWS = 14, TURN = 1;
#elif defined(__AVX2__)
constexpr int VECTORS = 2, MAX_ROWS = 6, TURN = 8;
#elif defined(__aarch64__)
constexpr int VECTORS = 4, MAX_ROWS = 6, TURN = 1;
#else
constexpr int VECTORS = 2, MAX_ROWS = 6, TURN = 1;
#endif

constexpr int64_t PANEL = VECTORS * LANES;

// What a product does in each whole turn beside its sums, given the turn's first k: nothing, or
// asking for memory that is read after it, `step` bytes a k. Weights that come from memory then
// arrive while the units multiply: without it one waits for the other (16 rows x 2304 x 256 with
// weights from DRAM, Zen 5, AVX-512: 145 us before, 86 us after; at hand the weights take 84 us).
struct Nothing {
  void operator()(int64_t) const {}
};

constexpr int64_t LINE = 64;  // bytes of a cache line

struct Ahead {
  const void* from;
  int64_t step;

  // Always inline: GCC drops calls of a function that does nothing but prefetch.
  [[gnu::always_inline]] void operator()(int64_t k) const {
    const char* at = static_cast<const char*>(from) + k * step;
    const int64_t bytes = TURN == 1 ? PANEL * int64_t{sizeof(float)} : TURN * step;
    for (int64_t byte = 0; byte < bytes; byte += LINE) __builtin_prefetch(at + byte, 0, 2);
  }
};

// sum[r][v] += a(r) b[v], b: WIDTH vectors.
template <int ROWS, int WIDTH, typename Value>
[[gnu::always_inline]] static inline void add_products(const Value& a, const float* b,
                                                       f32 (&sum)[ROWS][WIDTH]) {
  f32 column[WIDTH];
#pragma GCC unroll 4
  for (int v = 0; v < WIDTH; ++v) {
    column[v] = load(b + v * LANES);
    keep_in_register(column[v]);
  }
#pragma GCC unroll 14
  for (int r = 0; r < ROWS; ++r) {
    const f32 value = broadcast(a(r));
#pragma GCC unroll 4
    for (int v = 0; v < WIDTH; ++v) add_product(sum[r][v], value, column[v]);
  }
}

// a: row r begins at a + r * a_stride (floats). b: [depth][PANEL], of which WIDTH vectors are used.
template <int ROWS, int WIDTH, typename Beside = Nothing>
static inline void multiply_panel(const float* a, int64_t a_stride, const float* b, int64_t depth,
                                  f32 (&sum)[ROWS][WIDTH], const Beside& beside = {}) {
  // Of its own, and every loop over it unrolled: what the caller does with its sums must not keep
  // these from living in registers.
  f32 own[ROWS][WIDTH];
  const float* row[ROWS];
#pragma GCC unroll 14
  for (int r = 0; r < ROWS; ++r) {
    row[r] = a + r * a_stride;
    if constexpr (TURN > 1) keep_in_register(row[r]);
#pragma GCC unroll 4
    for (int v = 0; v < WIDTH; ++v) own[r][v] = sum[r][v];
  }
  int64_t k = 0;
  for (; k + TURN <= depth; k += TURN, b += TURN * PANEL) {
    beside(k);
#pragma GCC unroll 8
    for (int at = 0; at < TURN; ++at) {
      // A turn of 1 needs no addresses of rows, which may be too many for registers.
      const auto value = [&](int r) { return TURN > 1 ? row[r][k + at] : a[r * a_stride + k]; };
      add_products(value, b + at * PANEL, own);
    }
  }
  // What is left of the last turn; a turn of 1 leaves nothing.
#pragma GCC unroll 1
  for (; TURN > 1 && k < depth; ++k, b += PANEL) {
    add_products([&](int r) { return row[r][k]; }, b, own);
  }
#pragma GCC unroll 14
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < WIDTH; ++v) sum[r][v] = own[r][v];
  }
}

template <int ROWS>
struct Rows {
  static constexpr int value = ROWS;
};

template <int ROWS = MAX_ROWS, typename Body>
static inline void with_rows(int64_t rows, const Body& body) {
  if constexpr (ROWS == 1) {
    body(Rows<1>{});
  } else if (rows == ROWS) {
    body(Rows<ROWS>{});
  } else {
    with_rows<ROWS - 1>(rows, body);
  }
}

// Calls body(Rows<WIDTH>) for the vectors that `columns` of a panel fill.
template <int WIDTH = VECTORS, typename Body>
static inline void with_width(int64_t columns, const Body& body) {
  if constexpr (WIDTH > 1) {
    if (columns <= (WIDTH - 1) * LANES) return with_width<WIDTH - 1>(columns, body);
  }
  body(Rows<WIDTH>{});
}

static inline int64_t row_blocks(int64_t rows, int64_t most = MAX_ROWS) {
  return (rows + most - 1) / most;
}

// Rows, one at least, in blocks of nearly equal size, `most` at most: 16 rows in blocks of 14 would
// leave 2, which run at a fraction of the speed. The first `larger` blocks have `rows` of them, the
// others one less: what is done once for blocks of one size costs nothing for each.
struct RowBlocks {
  int64_t count, rows, larger;

  RowBlocks(int64_t all, int64_t most)
      : count(row_blocks(all, most)),
        rows((all + count - 1) / count),
        larger(all - (rows - 1) * count) {}

  int64_t rows_of(int64_t block) const { return block < larger ? rows : rows - 1; }
};

// Calls body(std::integral_constant-like Rows, first) for each block of rows.
template <typename Body>
static inline void for_row_blocks(int64_t rows, const Body& body) {
  const RowBlocks blocks(rows, MAX_ROWS);
  int64_t first = 0;
  const auto run = [&](int64_t count, int64_t size) {
    with_rows(size, [&](auto exactly) {
      for (int64_t block = 0; block < count; ++block, first += size) body(exactly, first);
    });
  };
  run(blocks.larger, blocks.rows);
  if (blocks.larger < blocks.count) run(blocks.count - blocks.larger, blocks.rows - 1);
}

}  // namespace
