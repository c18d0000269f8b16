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

constexpr int64_t BLOCK_FLOATS =
    64 * 1024;                      // of rows of a block of pixels, a quarter of a usual L2
constexpr int64_t MOST_BLOCKS = 8;  // of MAX_ROWS rows

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
        in_place(reads_in_place(a)),
        by_panels(pixels < a.y.channels),
        stride(in_place ? a.x.stride[0] : scratch_stride(depth)) {
    const int64_t fit = BLOCK_FLOATS / depth / MAX_ROWS;
    const int64_t rows = (fit < 1 ? 1 : fit < MOST_BLOCKS ? fit : MOST_BLOCKS) * MAX_ROWS;
    blocks = (pixels + rows - 1) / rows;
    if (by_panels) {
      blocks = 1;
      while (blocks * panels < threads && blocks * MAX_ROWS < pixels) ++blocks;
    } else if (blocks < pixels / MAX_ROWS) {
      blocks = round_up(blocks, threads);
      if (blocks > pixels) blocks = pixels;
    }
    block_rows = (pixels + blocks - 1) / blocks;
    const int64_t gathered = in_place || by_panels ? 0 : block_rows * stride;
    own_floats = scratch_stride(product_floats() + gathered);
  }

  // Pixels [begin(block), begin(block + 1)), of nearly equal count.
  int64_t begin(int64_t block) const { return pixels * block / blocks; }

  // A chunk of a panel brought into scratch, and sums.
  int64_t product_floats() const { return (CHUNK + block_rows) * PANEL; }

  int64_t bytes(int64_t threads) const {
    const int64_t shared = by_panels && !in_place ? pixels * stride : 0;
    return (threads * own_floats + shared) * int64_t{sizeof(float)};
  }

  int64_t pixels, depth, panels;
  bool in_place, by_panels;
  int64_t stride;  // of the rows of a
  int64_t blocks, block_rows;
  int64_t own_floats;  // of one thread
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
  const auto weights = [&](int64_t k, int64_t chunk) {
    return read_panel(a.weights, a.packing, rows.depth, panel, k, chunk, room);
  };
  const int64_t c = panel * PANEL;
  with_width(a.y.channels - c, [&](auto width) {
    multiply_rows<decltype(width)::value>(
        rows, weights, room + CHUNK * PANEL,
        [&](int64_t row, const auto& sum) { finish(a, step, first + row, c, sum); });
  });
}

// Each block of pixels is gathered once and meets all weights.
static void run_by_pixels(const fastddpm_convolution& a, const Plan& plan, const Team& team,
                          float* room) {
  float* const gathered = room + plan.product_floats();
  team.share(plan.blocks, [&](int64_t block) {
    const int64_t first = plan.begin(block), end = plan.begin(block + 1);
    RowBlock rows = {gathered, plan.stride, end - first, plan.depth};
    if (plan.in_place) {
      rows.data = a.x.data[0] + first * plan.stride;
    } else {
      gather(a, first, end, gathered, plan.stride);
    }
    for (int64_t panel = 0; panel < plan.panels; ++panel) {
      multiply(a, team.step, rows, first, panel, room);
    }
  });
}

// Each thread takes its share of the panels, one after the other as they lie in memory.
static void run_by_panels(const fastddpm_convolution& a, const Plan& plan, const Team& team,
                          float* room) {
  const float* rows = a.x.data[0];
  if (!plan.in_place) {
    float* const shared = reinterpret_cast<float*>(team.scratch) + team.size * plan.own_floats;
    const int64_t first = team.begin(plan.pixels), end = team.end(plan.pixels);
    gather(a, first, end, shared + first * plan.stride, plan.stride);
    team.barrier();
    rows = shared;
  }
  const int64_t pieces = plan.panels * plan.blocks;
  team.share(pieces, [&](int64_t piece) {
    const int64_t block = piece % plan.blocks, panel = piece / plan.blocks;
    const int64_t first = plan.begin(block), count = plan.begin(block + 1) - first;
    multiply(a, team.step, {rows + first * plan.stride, plan.stride, count, plan.depth}, first,
             panel, room);
  });
}

void run_convolution(const fastddpm_convolution& a, const Team& team) {
  const Plan plan(a, team.size);
  float* const room = reinterpret_cast<float*>(team.scratch) + team.member * plan.own_floats;
  (plan.by_panels ? run_by_panels : run_by_pixels)(a, plan, team, room);
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
