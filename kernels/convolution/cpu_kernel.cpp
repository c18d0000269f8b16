// Convolutions with a 1x1 or a 3x3 kernel, any stride, and linear layers:
//
//     y[p, o] = sum_k a[p, k] w[k, o],   k = (tap, channel)
//
// a: the pixels that output pixel p sees, normalised on the way in, 0 beyond the border; gathered
// row by row into scratch, or the map itself where a 1x1 kernel reads it as it is. w: packing.h.
//
// Whichever is longer is split between the threads. Many pixels: a piece of work is a block of
// pixels, gathered for itself, times all weights. Many output channels: all pixels are gathered
// together, then a piece is one panel of weights, so that each weight is read by one thread.
#include "../common/input.h"
#include "../common/kernels.h"
#include "../common/output.h"
#include "../common/rows_times_panel.h"
#include "../common/statistics.h"
#include "packing.h"

namespace {

using fastddpm::Team;

constexpr int64_t BLOCK_FLOATS = 64 * 1024;  // of gathered pixels, a quarter of a usual L2

// Whether the rows of a are the pixels of the map themselves.
static bool reads_in_place(const fastddpm_convolution& a) {
  return a.kernel == 1 && a.stride == 1 && a.padding == 0 && a.height == a.input_height &&
         a.width == a.input_width && a.x.channels[1] == 0 && a.x.norm == nullptr &&
         a.x.activation == FASTDDPM_ACTIVATION_NONE && a.x.stride[0] % 1024 != 0;
}

struct Plan {
  Plan(const fastddpm_convolution& a, int64_t threads)
      : pixels(a.batch * a.height * a.width),
        depth(a.kernel * a.kernel * all_channels(a.x)),
        panels(panels_of(a.y.channels)),
        stride(scratch_stride(depth)),
        in_place(reads_in_place(a)),
        by_panels(pixels < a.y.channels) {
    const int64_t fit = round_up(BLOCK_FLOATS / depth + 1, MAX_ROWS);
    const int64_t most = fit < 8 * MAX_ROWS ? fit : 8 * MAX_ROWS;
    // Equal shares: as many blocks as threads, or a multiple.
    blocks = (pixels + most - 1) / most;
    if (by_panels) {
      while (blocks * panels < 2 * threads && blocks * MAX_ROWS < pixels) ++blocks;
    } else {
      blocks = round_up(blocks, threads);
      if (blocks > pixels) blocks = pixels;
    }
    block_rows = (pixels + blocks - 1) / blocks;
    gathered = in_place ? 0 : by_panels ? pixels : block_rows;
    own_floats = scratch_stride(CHUNK * PANEL + block_rows * PANEL);
    if (!by_panels) own_floats = scratch_stride(own_floats + gathered * stride);
  }

  int64_t bytes(int64_t threads) const {
    return (threads * own_floats + (by_panels ? gathered * stride : 0)) * int64_t{sizeof(float)};
  }

  int64_t pixels, depth, panels;
  int64_t stride;  // of gathered rows
  bool in_place, by_panels;
  int64_t blocks, block_rows;  // of pixels
  int64_t gathered;            // rows, of a thread or of all
  int64_t own_floats;          // of one thread: a chunk of a panel, sums, gathered rows
};

// What one tap sees for `count` output pixels of a row; `pixel` and `column`: of the first, in the
// input. width: of the input, 0 if the tap's row lies beyond the border. PLAIN: one map as it is.
template <bool PLAIN>
static void gather_tap(const fastddpm_convolution& a, int64_t sample, int64_t pixel, int64_t column,
                       int64_t width, int64_t count, float* to, int64_t stride) {
  const int64_t step = a.stride, channels = all_channels(a.x), map_stride = a.x.stride[0];
  const float* map = a.x.data[0];
  for (int64_t i = 0; i < count; ++i, pixel += step, column += step, to += stride) {
    if (column < 0 || column >= width) {
      for (int64_t c = 0; c < channels; c += LANES) store(to + c, f32{});
    } else if (PLAIN) {
      const float* from = map + pixel * map_stride;
      for (int64_t c = 0; c < channels; c += LANES) store(to + c, load(from + c));
    } else {
      read_pixel(a.x, sample, pixel, to);
    }
  }
}

// Output pixels (y, x), (y, x + 1), ... of a sample. Taps in their order: a last vector reaches
// into the next tap's place.
static void gather_run(const fastddpm_convolution& a, int64_t sample, int64_t y, int64_t x,
                       int64_t count, float* to, int64_t stride) {
  const bool plain =
      a.x.norm == nullptr && a.x.activation == FASTDDPM_ACTIVATION_NONE && a.x.channels[1] == 0;
  const int64_t channels = all_channels(a.x), top = y * a.stride - a.padding;
  for (int64_t row = top; row < top + a.kernel; ++row) {
    const int64_t width = row >= 0 && row < a.input_height ? a.input_width : 0;
    const int64_t left = x * a.stride - a.padding;
    for (int64_t column = left; column < left + a.kernel; ++column, to += channels) {
      const int64_t pixel = (sample * a.input_height + row) * a.input_width + column;
      const auto gather = plain ? gather_tap<true> : gather_tap<false>;
      gather(a, sample, pixel, column, width, count, to, stride);
    }
  }
}

// Rows [first, end) of a, `stride` apart.
static void gather(const fastddpm_convolution& a, int64_t first, int64_t end, float* to,
                   int64_t stride) {
  while (first < end) {
    const int64_t x = first % a.width, line = first / a.width;
    const int64_t count = end - first < a.width - x ? end - first : a.width - x;
    gather_run(a, line / a.height, line % a.height, x, count, to, stride);
    first += count;
    to += count * stride;
  }
}

// The epilogue of ROWS pixels and WIDTH vectors of channels.
template <int ROWS, int WIDTH>
static inline void finish(const fastddpm_convolution& a, int64_t step, int64_t pixel, int64_t c,
                          const f32 (&sum)[ROWS][WIDTH]) {
  int64_t sample = pixel / (a.height * a.width);
  int64_t end = pixel;  // of the pixels that the offset is for
  f32 offset[WIDTH];
  for (int r = 0; r < ROWS; ++r) {
    if (r == 0 || pixel + r == end) {
      const float* row = row_of(a.y.row, sample, step);
      for (int v = 0; v < WIDTH; ++v) offset[v] = offset_of(a.y, row, c + v * LANES);
      end = ++sample * a.height * a.width;
    }
    for (int v = 0; v < WIDTH; ++v) {
      write(a.y, pixel + r, c + v * LANES, sum[r][v], offset[v]);
    }
  }
}

// Rows of a times one panel; the first row is that of output pixel `first`.
static void multiply(const fastddpm_convolution& a, int64_t step, const RowBlock& rows,
                     int64_t first, int64_t panel, float* room) {
  const auto chunk_of = [&](int64_t k, int64_t chunk) {
    return panel_rows(a.weights, a.packing, rows.depth, panel, k, chunk, room);
  };
  const int64_t c = panel * PANEL;
  with_width(a.y.channels - c, [&](auto width) {
    multiply_rows<decltype(width)::value>(
        rows, chunk_of, room + CHUNK * PANEL,
        [&](int64_t row, const auto& sum) { finish(a, step, first + row, c, sum); });
  });
}

void run_convolution(const fastddpm_convolution& a, const Team& team) {
  const Plan plan(a, team.size);
  float* const room = reinterpret_cast<float*>(team.scratch) + team.member * plan.own_floats;
  float* const shared = reinterpret_cast<float*>(team.scratch) + team.size * plan.own_floats;
  float* const own = room + CHUNK * PANEL + plan.block_rows * PANEL;
  if (plan.by_panels && !plan.in_place) {
    const int64_t first = team.begin(plan.pixels), end = team.end(plan.pixels);
    gather(a, first, end, shared + first * plan.stride, plan.stride);
    team.barrier();
  }
  const int64_t groups = plan.by_panels ? plan.panels : 1, width = plan.panels / groups;
  for (int64_t piece = team.claim(); piece < plan.blocks * groups; piece = team.claim()) {
    const int64_t block = piece % plan.blocks, panel = piece / plan.blocks * width;
    const int64_t first = plan.pixels * block / plan.blocks;
    const int64_t end = plan.pixels * (block + 1) / plan.blocks;
    const float* rows = plan.by_panels ? shared + first * plan.stride : own;
    if (plan.in_place) rows = a.x.data[0] + first * a.x.stride[0];
    if (!plan.by_panels && !plan.in_place) gather(a, first, end, own, plan.stride);
    const RowBlock block_of_rows = {rows, plan.in_place ? a.x.stride[0] : plan.stride, end - first,
                                    plan.depth};
    for (int64_t n = panel; n < panel + width; ++n) {
      multiply(a, team.step, block_of_rows, first, n, room);
    }
  }
  if (a.y.statistics != nullptr) {
    team.barrier();
    write_statistics(
        {a.y.data, a.y.stride, a.y.channels, a.batch, a.height, a.width, a.y.statistics}, team);
  }
}

int64_t scratch_bytes(const fastddpm_convolution& a, int32_t threads) {
  return Plan(a, threads).bytes(threads);
}

}  // namespace

namespace fastddpm::FASTDDPM_ISA {

extern const Operation convolution;
const Operation convolution = operation<fastddpm_convolution, run_convolution, scratch_bytes>();
extern const Packing convolution_packing;
const Packing convolution_packing = {packed_bytes, pack_weights};

}  // namespace fastddpm::FASTDDPM_ISA
