// How a convolution is cut into pieces, and where its scratch numbers lie.
//
// A line is a row of tiles: 4 rows of pixels of one image of the map that is cut (struct Map),
// which are one strip of the statistics or, phase by phase, two. Lines of all images follow one
// another. A block of lines is transformed into V, of one member or of the team; then each piece, a
// panel of output channels by some lines of the block, is multiplied by one member:
//
//     V [in / slab][36][pieces][row blocks][slab / 16][rows][16]
//     U [6][depth][PANEL]    M [tiles of a piece][36][PANEL]
//
// of THIN pieces V [in / 16][36][pieces][rows][16], U [12][16][PANEL], and of phases beside U
//
//     sums [VECTORS][depth][4][LANES]
//
// The tiles that the inner product takes at a time, a row block, lie side by side in V, a line of
// the cache each, so that it reads one stream.
//
// Nothing of this but Map, which depends on one image's size alone, changes a result: every sum
// runs over the input channels in their order.
#pragma once

#include "../common/input.h"
#include "packing.h"

namespace {

// Input channels of a tile that lie together in V: a line of the cache.
constexpr int64_t GROUP = 16;
// Tiles of a piece: the weights' transform is shared by so many, and M takes 300 KB.
constexpr int64_t PIECE_TILES = 2048 / PANEL;
// A member takes so many pieces of a block, so that none waits long for the last; V is no
// larger than that, and stays in the cache.
constexpr int64_t MEMBER_PIECES = 3;
// Input channels whose V lies together and whose U is a piece's: 32 KB of a panel for a frequency.
constexpr int64_t SLAB = 256;
constexpr int64_t U_FREQUENCY = SLAB * PANEL + 16;  // floats between two frequencies of U
// So few tiles are multiplied with their sums in registers, a row of frequencies at a time or half
// of one; distances between two tiles and two frequencies of V are constants then.
constexpr int REGISTER_SUMS = VECTORS * MAX_ROWS >= 24 ? 24 : 12;
constexpr int FEW = REGISTER_SUMS == 24 ? 8 : 2;
constexpr int64_t FEW_TILE = SLAB + 16, FEW_FREQUENCY = (FEW * FEW_TILE / 16 | 1) * 16;
// A piece of more than that, and of one row block, takes all frequencies of a GROUP of input
// channels, then those of the next, so that its U stays in the first cache: 1.2 to 1.3 times as
// fast as FEW or SLAB for 3 to 5 tiles, for 8 no faster (AVX2 on Zen 3, November 2026).
constexpr int64_t THIN = REGISTER_SUMS == 24 ? 0 : MAX_ROWS;
constexpr int64_t THIN_FREQUENCY = GROUP * PANEL + 16;  // floats between two frequencies of its U
// From so many tiles a member on, each has blocks of its own. 8 pay if they are few; else each
// would spend a third of its time on the transform of all weights (AVX2 on Zen 5, November 2026).
constexpr int64_t MEMBER_TILES = FEW >= 8 ? 8 : 16;
// From so many tiles of the input on, a doubled map is convolved phase by phase if that saves a
// fifth of the products: 1.2 to 1.35 times as fast for 16 and 64 tiles (256 channels, AVX2 on Zen
// 3, November 2026). Of fewer tiles, the transform of each phase's weights costs what is saved.
constexpr int64_t PHASE_TILES = 16;
constexpr int PHASES = 4, PHASE_POINTS = POINTS - 1, PHASE_TAPS = 4;
// Input channels that are normalised and transformed together, at most.
constexpr int64_t CHUNK = 64;
constexpr int64_t RING_PIXEL =
    CHUNK + 16;  // floats of a pixel: whole vectors are written from any one on
// Lines that are transformed together: 2 of 4 n + 2 rows of pixels are read twice.
constexpr int64_t RUN_LINES = 8;

// The least number of floats for `count` that is an odd number of cache lines: no two rows of so
// many floats meet in one set of a cache more often than they must.
static inline int64_t odd_lines(int64_t count) { return (round_up(count, 16) / 16 | 1) * 16; }

static constexpr int64_t quotient_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

static inline void clear(float* to, int64_t count) { memset(to, 0, count * sizeof(float)); }

static inline int64_t tiles_of(int64_t pixels) { return quotient_up(pixels, TILE); }

// The map that is cut into tiles: the output or, where that is an input doubled, the small input if
// it pays. Each of its pixels becomes four then, one of each phase (a, b),
//
//     y(2 i, .) = g0 x(i - 1) + (g1 + g2) x(i)    y(2 i + 1, .) = (g0 + g1) x(i) + g2 x(i + 1)
//
// in each direction, and a phase is a convolution of the small map by a kernel of 2x2 sums of taps.
// The frequencies of the point infinity are 0 for the first of two phases, those of the point 0 for
// the second: 25 products for each phase of a tile, which is 100 for the 144 of four tiles
// (benchmarks/cpu/work.py counts them by the same rule).
struct Map {
  int64_t height, width, doubled, phases;

  explicit Map(const fastddpm_conv3x3& conv)
      : height(conv.height), width(conv.width), doubled(conv.doubled), phases(1) {
    if (!doubled || conv.packing == FASTDDPM_PACKING_TRANSFORMED) return;
    const int64_t tiles = tiles_of(height / 2) * tiles_of(width / 2);
    const int64_t products = tiles * PHASES * PHASE_POINTS * PHASE_POINTS;
    const int64_t whole = tiles_of(height) * tiles_of(width) * FREQUENCIES;
    if (tiles < PHASE_TILES || products * 5 > whole * 4) return;
    height /= 2, width /= 2, doubled = 0, phases = PHASES;
  }

  int64_t lines(int64_t batch) const { return batch * tiles_of(height); }
  // Of a tile, for one input and one output channel.
  int64_t products() const {
    return phases == 1 ? FREQUENCIES : PHASES * PHASE_POINTS * PHASE_POINTS;
  }
};

struct Blocks {
  Map map;
  int64_t in, panels;
  int64_t across, image_lines;  // tiles of a line, lines of an image
  int64_t piece_lines, block_lines;
  int64_t chunk;  // input channels that are transformed together
  int64_t slab;   // that lie together in V
  int64_t depth;  // whose weights are transformed at a time
  int64_t rows;   // tiles of a row block, at most
  // Floats of V between two tiles of a row block, groups of 16 input channels, row blocks, pieces,
  // frequencies and slabs.
  int64_t v_tile, v_group, v_rows, v_piece, v_frequency, v_slab;
  int64_t m_tile;
  bool few;        // a block has FEW tiles: their sums live in registers
  bool thin;       // a piece has THIN tiles: one group of input channels after the other
  int64_t shared;  // floats of V
  int64_t row;     // of a row of pixels in the ring
  int64_t sums;    // of taps of a phase
  int64_t member;  // of U, M and the ring of one member

  // For so many of the lines of all images, by so many threads.
  Blocks(const fastddpm_conv3x3& conv, int64_t lines, int64_t threads) : map(conv) {
    in = all_channels(conv.x);
    panels = panels_of(conv.y.channels);
    across = tiles_of(map.width);
    image_lines = tiles_of(map.height);
    // A panel for everyone, or fewer tiles a piece; then pieces of nearly equal size.
    const int64_t most =
        smaller(larger(1, PIECE_TILES / across), quotient_up(lines, quotient_up(threads, panels)));
    const int64_t pieces = quotient_up(lines, most);
    const int64_t blocks = larger(1, pieces * panels / (MEMBER_PIECES * threads));
    block_lines = quotient_up(lines, smaller(blocks, pieces));
    const int64_t parts = quotient_up(block_lines, most);
    piece_lines = quotient_up(block_lines, parts);
    const int64_t tiles = piece_lines * across;
    slab = smaller(in, round_up(quotient_up(in, quotient_up(in, SLAB)), CHUNK));
    // Something to transform for everyone, even of a small image's few channels.
    chunk = CHUNK;
    const int64_t runs = quotient_up(block_lines, RUN_LINES);
    while (chunk > GROUP && quotient_up(in, chunk) * runs < threads) chunk /= 2;
    const bool nine_taps = conv.packing != FASTDDPM_PACKING_TRANSFORMED && map.phases == 1;
    few = block_lines * across <= FEW && nine_taps;
    thin = !few && tiles <= THIN && nine_taps;
    depth = smaller(slab, few ? 64 : SLAB);
    rows = few ? FEW : RowBlocks(tiles, MAX_ROWS).rows;
    const int64_t groups = quotient_up(slab, GROUP);
    v_tile = few ? FEW_TILE : GROUP;
    v_rows = thin ? rows * GROUP : odd_lines(groups * rows * GROUP);
    v_piece = few ? 0 : row_blocks(tiles, rows) * v_rows;
    v_frequency = few ? FEW_FREQUENCY : odd_lines(parts * v_piece);
    v_group = few ? GROUP : thin ? FREQUENCIES * v_frequency : rows * GROUP;
    v_slab = odd_lines(thin ? groups * v_group : FREQUENCIES * v_frequency);
    shared = quotient_up(in, slab) * v_slab;
    m_tile = odd_lines(FREQUENCIES * PANEL);
    row = odd_lines((across * TILE + 2) * RING_PIXEL);
    sums = map.phases == 1 ? 0 : depth * PHASE_TAPS * PANEL;
    member = POINTS * U_FREQUENCY + tiles * m_tile + POINTS * row + sums;
  }

  int64_t bytes(int64_t threads) const { return (shared + threads * member) * 4; }

  // Into so many parts a block of `lines` lines is cut; few tiles lie as if it were not.
  int64_t parts_of(int64_t lines) const { return few ? 1 : quotient_up(lines, piece_lines); }
  // Where a piece begins in V, part `part` of a block, from its line `line` on.
  int64_t v_part(int64_t part, int64_t line) const {
    return few ? line * across * v_tile : part * v_piece;
  }
  // Where input channel k begins in V, a multiple of GROUP.
  int64_t v_channel(int64_t k) const { return k / slab * v_slab + k % slab / GROUP * v_group; }
};

// The tiles of a block of `lines` lines in their order, from the first of line `line` on, and where
// each begins in V.
class Place {
 public:
  Place(const Blocks& blocks, int64_t lines, int64_t line)
      : blocks_(blocks), lines_(lines), parts_(blocks.parts_of(lines)) {
    while (part_end() <= line) ++part_;
    begin_part();
    tile_ = (line - lines_ * part_ / parts_) * blocks_.across;
    while (end_ <= tile_) begin_rows();
  }

  int64_t floats() const {
    return part_ * blocks_.v_piece + rows_ * blocks_.v_rows + (tile_ - begin_) * blocks_.v_tile;
  }

  void next() {
    if (++tile_ < end_) return;
    if (tile_ < tiles_) return begin_rows();
    ++part_;
    begin_part();
  }

 private:
  int64_t part_end() const { return lines_ * (part_ + 1) / parts_; }
  void begin_part() {
    tile_ = end_ = 0;
    rows_ = -1;
    tiles_ = (part_end() - lines_ * part_ / parts_) * blocks_.across;
    row_blocks_ = RowBlocks(tiles_, blocks_.rows);
    begin_rows();
  }
  void begin_rows() {
    ++rows_;
    begin_ = end_;
    end_ += row_blocks_.rows_of(rows_);
  }

  const Blocks& blocks_;
  int64_t lines_, parts_;
  int64_t part_ = 0, tiles_, tile_;  // of the part
  RowBlocks row_blocks_ = {1, 1};
  int64_t rows_, begin_, end_;  // row block, and its tiles
};

// What one member writes to; V may be that of another, which it helps.
struct Scratch {
  float *v, *u, *m, *ring, *sums;

  Scratch(const Blocks& blocks, char* scratch, int64_t member) {
    v = reinterpret_cast<float*>(scratch);
    u = v + blocks.shared + member * blocks.member;
    m = u + POINTS * U_FREQUENCY;
    sums = u + blocks.member - blocks.sums;
    ring = sums - POINTS * blocks.row;
  }
};

}  // namespace
