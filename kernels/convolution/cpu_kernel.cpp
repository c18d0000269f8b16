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

// Row p of a: what output pixel p sees.
static void gather(const fastddpm_convolution& a, int64_t p, float* to) {
  const int64_t channels = all_channels(a.x), sample = p / (a.height * a.width);
  const int64_t top = p / a.width % a.height * a.stride - a.padding;
  const int64_t left = p % a.width * a.stride - a.padding;
  for (int64_t tap = 0; tap < a.kernel * a.kernel; ++tap, to += channels) {
    const int64_t y = top + tap / a.kernel, x = left + tap % a.kernel;
    if (y >= 0 && y < a.input_height && x >= 0 && x < a.input_width) {
      read_pixel(a.x, sample, (sample * a.input_height + y) * a.input_width + x, to);
    } else {
      for (int64_t c = 0; c < channels; ++c) to[c] = 0;
    }
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
    for (int64_t p = team.begin(plan.pixels); p < team.end(plan.pixels); ++p) {
      gather(a, p, shared + p * plan.stride);
    }
    team.barrier();
  }
  const int64_t groups = plan.by_panels ? plan.panels : 1, width = plan.panels / groups;
  for (int64_t piece = team.claim(); piece < plan.blocks * groups; piece = team.claim()) {
    const int64_t block = piece % plan.blocks, panel = piece / plan.blocks * width;
    const int64_t first = plan.pixels * block / plan.blocks;
    const int64_t end = plan.pixels * (block + 1) / plan.blocks;
    const float* rows = plan.by_panels ? shared + first * plan.stride : own;
    if (plan.in_place) rows = a.x.data[0] + first * a.x.stride[0];
    if (!plan.by_panels && !plan.in_place) {
      for (int64_t p = first; p < end; ++p) gather(a, p, own + (p - first) * plan.stride);
    }
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
