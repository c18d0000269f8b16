// GroupNorm's statistics and coefficients; what reads the map applies them (common/input.h).
//
//     y = (x - mean_g) scale_c + shift_c,   scale = weight / sqrt(var_g + eps),   shift = bias
//     with FiLM's (a, b):   scale (1 + a),   shift (1 + a) + b
//
// Strips are put together to channels and channels to groups (Chan, Golub, LeVeque 1983): all of a
// part's M2 and its squared distance from the common mean, so that no large numbers cancel.
// Specification: reference.py.
#include "../common/input.h"
#include "../common/kernels.h"
#include "../common/output.h"
#include "../common/statistics.h"

namespace {

using fastddpm::Team;

// Mean and M2 of channels [c, c + LANES) of one map over all strips; `from` is the sample's
// [strips, 2, stride] at c, `count` of its lanes are wanted.
static inline void channel_statistics(const fastddpm_norm& a, const float* from, int64_t stride,
                                      int64_t count, f32& mean, f32& deviations) {
  const int64_t strips = strips_of(a.height);
  const f32 about = load(from, count);
  f32 sum = {};
  for (int64_t s = 1; s < strips; ++s) {
    const float share = static_cast<float>(rows_of(s, a.height)) / static_cast<float>(a.height);
    sum = multiply_add(load(from + s * 2 * stride, count) - about, broadcast(share), sum);
  }
  mean = about + sum;
  deviations = f32{};
  for (int64_t s = 0; s < strips; ++s) {
    const float pixels = static_cast<float>(rows_of(s, a.height) * a.width);
    const f32 distance = load(from + s * 2 * stride, count) - mean;
    deviations = deviations + load(from + s * 2 * stride + stride, count);
    deviations = multiply_add(distance * pixels, distance, deviations);
  }
}

// Channels [first, end) of all that is joined: means and M2, where mean and scale will be.
void gather_channels(const fastddpm_norm& a, int64_t sample, int64_t first, int64_t end,
                     float* mean, float* deviations) {
  int64_t offset = 0;
  for (int part = 0; part < 2 && a.channels[part] > 0; ++part) {
    const int64_t stride = a.stride[part], next = offset + a.channels[part];
    const float* from = a.statistics[part] + sample * strips_of(a.height) * 2 * stride - offset;
    const int64_t begin = first > offset ? first : offset, stop = end < next ? end : next;
    for (int64_t c = begin; c < stop; c += LANES) {
      f32 of_mean, of_deviations;
      channel_statistics(a, from + c, stride, stop - c, of_mean, of_deviations);
      store(mean + c, of_mean, stop - c);
      store(deviations + c, of_deviations, stop - c);
    }
    offset = next;
  }
}

// Channels [first, end) are one group: their means and M2 become its coefficients.
void finish_group(const fastddpm_norm& a, const float* modulation, int64_t first, int64_t end,
                  float* mean, float* scale, float* shift) {
  const double pixels = static_cast<double>(a.height * a.width);
  const int64_t channels = a.channels[0] + a.channels[1];
  double sum = 0, deviations = 0;
  for (int64_t c = first; c < end; ++c) sum += mean[c];
  const double group_mean = sum / static_cast<double>(end - first);
  for (int64_t c = first; c < end; ++c) {
    const double distance = mean[c] - group_mean;
    deviations += scale[c] + pixels * distance * distance;
  }
  const double variance = deviations / (pixels * static_cast<double>(end - first));
  const float reciprocal = static_cast<float>(1.0 / __builtin_sqrt(variance + a.eps));
  for (int64_t c = first; c < end; ++c) {
    mean[c] = static_cast<float>(group_mean);
    scale[c] = a.weight == nullptr ? reciprocal : reciprocal * a.weight[c];
    shift[c] = a.bias == nullptr ? 0.0f : a.bias[c];
    if (modulation == nullptr) continue;
    scale[c] = scale[c] * (1.0f + modulation[c]);
    shift[c] = shift[c] * (1.0f + modulation[c]) + modulation[channels + c];
  }
}

void run_norm(const fastddpm_norm& a, const Team& team) {
  const int64_t channels = a.channels[0] + a.channels[1], each = channels / a.groups;
  const int64_t width = round_up(channels, FASTDDPM_ALIGN), total = a.batch * a.groups;
  for (int64_t next = team.begin(total), end = team.end(total); next < end;) {
    const int64_t sample = next / a.groups, group = next % a.groups;
    const int64_t left = end - next, stop = left < a.groups - group ? group + left : a.groups;
    const float* modulation = row_of(a.modulation, sample, team.step);
    float* const mean = a.norm + sample * 3 * width;
    float *const scale = mean + width, *const shift = scale + width;
    gather_channels(a, sample, group * each, stop * each, mean, scale);
    for (int64_t g = group; g < stop; ++g) {
      finish_group(a, modulation, g * each, (g + 1) * each, mean, scale, shift);
    }
    // Finite, so that what a map holds beyond its channels meets no other infinity here.
    for (int64_t c = channels; stop == a.groups && c < width; ++c) {
      mean[c] = scale[c] = shift[c] = 0.0f;
    }
    next += stop - group;
  }
}

}  // namespace

namespace fastddpm::FASTDDPM_ISA {

extern const Operation statistics;
const Operation statistics =
    operation<fastddpm_statistics, write_statistics, no_scratch<fastddpm_statistics>>();
extern const Operation norm;
const Operation norm = operation<fastddpm_norm, run_norm, no_scratch<fastddpm_norm>>();

}  // namespace fastddpm::FASTDDPM_ISA
