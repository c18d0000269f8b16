// A map written as it is read: normalised, activated, joined; halved (mean of 2x2), doubled
// (nearest neighbour); with all that an output adds, and its statistics.
//
// A cell is what is read once: a pixel, four of them that become one, or one that becomes four. A
// piece of work is a few rows of a sample, a strip if its statistics are wanted: they are taken
// while what was written is still in the cache. Specification: reference.py.
#include "../common/input.h"
#include "../common/kernels.h"
#include "../common/output.h"
#include "../common/statistics.h"

namespace {

using fastddpm::Team;

// Scratch of one member: offsets, and the pixels of a cell. An odd number of cache lines each.
constexpr int64_t LINES = 5;

static inline int64_t line_floats(const fastddpm_pointwise& a) {
  return round_up(all_channels(a.x) + LANES, 2 * FASTDDPM_ALIGN) + FASTDDPM_ALIGN;
}

int64_t scratch(const fastddpm_pointwise& a, int32_t threads) {
  return threads * LINES * line_floats(a) * static_cast<int64_t>(sizeof(float));
}

// One pixel's channels: where they lie, if they are taken as they are, else in `line`.
static inline const float* read_or_find(const fastddpm_input& x, int64_t sample, int64_t pixel,
                                        float* line) {
  if (x.norm == nullptr && x.activation == FASTDDPM_ACTIVATION_NONE && x.channels[1] == 0) {
    return x.data[0] + pixel * x.stride[0];
  }
  read_pixel(x, sample, pixel, line);
  return line;
}

// The mean of the four pixels at twice (row, column), summed in torch's order.
static inline const float* read_mean(const fastddpm_pointwise& a, int64_t sample, int64_t row,
                                     int64_t column, float* line, int64_t floats) {
  const int64_t pixel = (sample * 2 * a.height + 2 * row) * 2 * a.width + 2 * column;
  const float* corner[4];
  for (int64_t k = 0; k < 4; ++k) {
    const int64_t at = pixel + k / 2 * 2 * a.width + k % 2;
    corner[k] = read_or_find(a.x, sample, at, line + k * floats);
  }
  for (int64_t c = 0; c < a.y.channels; c += LANES) {
    const f32 sum = load(corner[0] + c) + load(corner[1] + c) + load(corner[2] + c);
    store(line + c, (sum + load(corner[3] + c)) * 0.25f);
  }
  return line;
}

static inline void write_pixel(const fastddpm_output& y, int64_t pixel, const float* values,
                               const float* offsets) {
  for (int64_t c = 0; c < y.channels; c += LANES) {
    write(y, pixel, c, load(values + c), load(offsets + c));
  }
}

// Rows [first, end) of a sample's output.
void write_rows(const fastddpm_pointwise& a, int64_t sample, int64_t first, int64_t end,
                const float* offsets, float* line, int64_t floats) {
  const int64_t each = a.resample == FASTDDPM_RESAMPLE_DOUBLE ? 2 : 1;
  const int64_t height = a.height / each, width = a.width / each;
  for (int64_t row = first / each; row < end / each; ++row) {
    for (int64_t column = 0; column < width; ++column) {
      const float* values =
          a.resample == FASTDDPM_RESAMPLE_HALVE
              ? read_mean(a, sample, row, column, line, floats)
              : read_or_find(a.x, sample, (sample * height + row) * width + column, line);
      for (int64_t k = 0; k < each * each; ++k) {
        const int64_t to_row = sample * a.height + row * each + k / each;
        write_pixel(a.y, to_row * a.width + column * each + k % each, values, offsets);
      }
    }
  }
}

void run_pointwise(const fastddpm_pointwise& a, const Team& team) {
  // An even number of rows; fewer where nobody needs a strip.
  const int64_t rows = a.y.statistics != nullptr ? STRIP : STRIP / 2;
  const int64_t strips = (a.height + rows - 1) / rows, floats = line_floats(a);
  float* const offsets = reinterpret_cast<float*>(team.scratch) + team.member * LINES * floats;
  int64_t offsets_of = -1;
  const int64_t begin = team.begin(a.batch * strips), end = team.end(a.batch * strips);
  for (int64_t piece = begin; piece < end; ++piece) {
    const int64_t sample = piece / strips, first = piece % strips * rows;
    const int64_t last = first + rows < a.height ? first + rows : a.height;
    if (sample != offsets_of) {
      const float* row = row_of(a.y.row, sample, team.step);
      for (int64_t c = 0; c < a.y.channels; c += LANES) store(offsets + c, offset_of(a.y, row, c));
      offsets_of = sample;
    }
    write_rows(a, sample, first, last, offsets, offsets + floats, floats);
    if (a.y.statistics == nullptr) continue;
    const int64_t stride = a.y.stride;
    strip_statistics(a.y.data + (sample * a.height + first) * a.width * stride, stride,
                     last - first, a.width, 0, a.y.channels, a.y.statistics + piece * 2 * stride);
  }
}

}  // namespace

namespace fastddpm::FASTDDPM_ISA {

extern const Operation pointwise;
const Operation pointwise = operation<fastddpm_pointwise, run_pointwise, scratch>();

}  // namespace fastddpm::FASTDDPM_ISA
