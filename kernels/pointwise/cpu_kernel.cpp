// A map written as it is read: normalised, activated, joined; halved (mean of 2x2), doubled
// (nearest neighbour); with all that an output adds, and its statistics.
//
// A piece of work is a few rows of a sample, a strip if its statistics are wanted: they are taken
// while what was written is still in the cache. Specification: reference.py.
#include "../common/input.h"
#include "../common/kernels.h"
#include "../common/output.h"
#include "../common/statistics.h"

namespace {

using fastddpm::Team;

// Pixels that are read at a time: each vector of the norm serves them all.
constexpr int64_t RUN = 8;

// Where pixels lie: in their map, or as they have been read.
struct Pixels {
  const float* data;
  int64_t stride;
};

// Floats from one pixel in scratch to the next: an odd number of cache lines.
static inline int64_t line_floats(const fastddpm_pointwise& a) {
  return round_up(all_channels(a.x) + LANES, 2 * FASTDDPM_ALIGN) + FASTDDPM_ALIGN;
}

// Of each member: offsets, and a run of pixels.
static inline int64_t member_floats(const fastddpm_pointwise& a) {
  return (1 + RUN) * line_floats(a);
}

int64_t scratch(const fastddpm_pointwise& a, int32_t threads) {
  return threads * member_floats(a) * static_cast<int64_t>(sizeof(float));
}

// `count` pixels in a row, into `lines` unless they are taken as they are.
static Pixels read(const fastddpm_pointwise& a, int64_t sample, int64_t pixel, int64_t count,
                   float* lines) {
  const fastddpm_input& x = a.x;
  const int64_t floats = line_floats(a);
  if (x.norm == nullptr && x.activation == FASTDDPM_ACTIVATION_NONE && x.channels[1] == 0) {
    return {x.data[0] + pixel * x.stride[0], x.stride[0]};
  }
  read_pixels(x, 0, sample, pixel, count, 0, x.channels[0], lines, floats);
  // The second part overwrites what the first has written beyond its end.
  if (x.channels[1] > 0) {
    read_pixels(x, 1, sample, pixel, count, 0, x.channels[1], lines + x.channels[0], floats);
  }
  return {lines, floats};
}

// The means of `count` squares of 2 x 2 pixels side by side; `pixel` is the first one's corner.
// Summed in torch's order.
static Pixels read_halved(const fastddpm_pointwise& a, int64_t sample, int64_t pixel, int64_t count,
                          float* lines) {
  const int64_t floats = line_floats(a);
  const Pixels top = read(a, sample, pixel, 2 * count, lines);
  const Pixels bottom = read(a, sample, pixel + 2 * a.width, 2 * count, lines + 2 * count * floats);
  for (int64_t k = 0; k < count; ++k) {
    const float *upper = top.data + 2 * k * top.stride, *lower = bottom.data + 2 * k * top.stride;
    for (int64_t c = 0; c < a.y.channels; c += LANES) {
      const f32 sum = load(upper + c) + load(upper + top.stride + c) + load(lower + c);
      store(lines + k * floats + c, (sum + load(lower + top.stride + c)) * 0.25f);
    }
  }
  return {lines, floats};
}

static inline void write_pixel(const fastddpm_output& given, int64_t pixel, const float* values,
                               const float* offsets) {
  const fastddpm_output y = given;  // a copy, which what is written cannot change
  for (int64_t c = 0; c < y.channels; c += LANES) {
    write(y, pixel, c, load(values + c), load(offsets + c));
  }
}

// Rows [first, end) of a sample's output. Each pixel read is written to `each` x `each`.
void write_rows(const fastddpm_pointwise& a, int64_t sample, int64_t first, int64_t end,
                const float* offsets, float* lines) {
  const bool halve = a.resample == FASTDDPM_RESAMPLE_HALVE;
  const int64_t each = a.resample == FASTDDPM_RESAMPLE_DOUBLE ? 2 : 1, run = halve ? RUN / 4 : RUN;
  const int64_t height = a.height / each, width = a.width / each;
  for (int64_t row = first / each; row < end / each; ++row) {
    for (int64_t column = 0; column < width; column += run) {
      const int64_t count = width - column < run ? width - column : run;
      const int64_t above = sample * height + row;  // rows of the whole batch
      const Pixels cells =
          halve ? read_halved(a, sample, (2 * above * width + column) * 2, count, lines)
                : read(a, sample, above * width + column, count, lines);
      for (int64_t k = 0; k < count * each * each; ++k) {
        const int64_t cell = k % (count * each) / each;
        const int64_t to_row = above * each + k / (count * each);
        write_pixel(a.y, to_row * a.width + column * each + k % (count * each),
                    cells.data + cell * cells.stride, offsets);
      }
    }
  }
}

void run_pointwise(const fastddpm_pointwise& a, const Team& team) {
  // An even number of rows; fewer where nobody needs a strip.
  const int64_t rows = a.y.statistics != nullptr ? STRIP : STRIP / 2;
  const int64_t strips = (a.height + rows - 1) / rows;
  float* const offsets = reinterpret_cast<float*>(team.scratch) + team.member * member_floats(a);
  int64_t offsets_of = -1;
  team.share(a.batch * strips, [&](int64_t piece) {
    const int64_t sample = piece / strips, first = piece % strips * rows;
    const int64_t last = first + rows < a.height ? first + rows : a.height;
    if (sample != offsets_of) {
      const float* row = row_of(a.y.row, sample, team.step);
      for (int64_t c = 0; c < a.y.channels; c += LANES) store(offsets + c, offset_of(a.y, row, c));
      offsets_of = sample;
    }
    write_rows(a, sample, first, last, offsets, offsets + line_floats(a));
    if (a.y.statistics == nullptr) return;
    const int64_t stride = a.y.stride;
    strip_statistics(a.y.data + (sample * a.height + first) * a.width * stride, stride,
                     last - first, a.width, 0, a.y.channels, a.y.statistics + piece * 2 * stride);
  });
}

}  // namespace

namespace fastddpm::FASTDDPM_ISA {

extern const Operation pointwise;
const Operation pointwise = operation<fastddpm_pointwise, run_pointwise, scratch>();

}  // namespace fastddpm::FASTDDPM_ISA
