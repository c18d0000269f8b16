#include "ports.h"

#include <cmath>

#include "formulas.h"

namespace {

int64_t stride_with(int64_t channels, int options) {
  return stride_of(channels) + (options & WIDE ? 16 : 0);
}

}  // namespace

Input::Input(int64_t batch, int64_t height, int64_t width, const std::vector<int64_t>& channels,
             int options)
    : norm(0, 0, 0, 0), options(options) {
  int64_t all = 0;
  for (const int64_t count : channels) {
    maps.push_back(random_map(batch, height, width, count));
    all += count;
  }
  norm = random_map(batch, 3, 1, all);
}

Map Input::read() const {
  Map map = joined(maps);
  for (size_t k = 0; k < map.values.size(); ++k) {
    const int64_t b = k / (map.height * map.width * map.channels), c = k % map.channels;
    double& value = map.values[k];
    if (options & NORM) {
      value = (value - norm.at(b, 0, 0, c)) * norm.at(b, 1, 0, c) + norm.at(b, 2, 0, c);
    }
    if (options & SILU) value /= 1 + std::exp(-value);
  }
  return map;
}

InputMemory::InputMemory(const Input& from, Samples samples) {
  for (size_t k = 0; k < from.maps.size(); ++k) {
    input.channels[k] = from.maps[k].channels;
    input.stride[k] = stride_with(from.maps[k].channels, from.options);
    maps[k] = laid_out(from.maps[k], samples, input.stride[k]);
    input.data[k] = maps[k].data();
  }
  if (from.options & NORM) {
    norm = laid_out(from.norm, samples, stride_of(from.channels()));
    input.norm = norm.data();
  }
  input.activation = from.options & SILU ? FASTDDPM_ACTIVATION_SILU : FASTDDPM_ACTIVATION_NONE;
}

Output::Output(int64_t batch, int64_t height, int64_t width, int64_t channels, int options)
    : residual(random_map(batch, height, width, channels)),
      bias(random_numbers(channels)),
      rows(random_map(options & SAMPLE_ROW ? batch : 1, STEPS, 1, channels)),
      divisor(options & DIVISOR ? 1.25 : 1),
      options(options) {}

Map Output::finished(Map map, int64_t step) const {
  for (size_t k = 0; k < map.values.size(); ++k) {
    const int64_t b = k / (map.height * map.width * map.channels), c = k % map.channels;
    double& value = map.values[k];
    if (options & BIAS) value += bias[c];
    if (options & STEP_ROW) value += rows.at(0, step, 0, c);
    if (options & SAMPLE_ROW) value += rows.at(b, step, 0, c);
    if (options & (RESIDUAL | IN_PLACE)) value += residual.values[k];
    value /= divisor;
  }
  return map;
}

Results Output::finish(const Map& value) const {
  const Map map = finished(value, STEP);
  Results results = {{"map", map.values}};
  if (options & STATISTICS) results.push_back({"statistics", statistics_of(map).values});
  return results;
}

OutputMemory::OutputMemory(const Output& to, Samples samples) {
  const Map& shape = to.residual;
  output.channels = shape.channels;
  output.stride = stride_with(shape.channels, to.options);
  output.divisor = to.divisor;
  if (to.options & IN_PLACE) {
    map = laid_out(shape, samples, output.stride);
    output.residual = map.data();
    output.residual_stride = output.stride;
  } else {
    map = Memory<float>(samples.count() * shape.height * shape.width * output.stride);
  }
  output.data = map.data();
  if (to.options & RESIDUAL) {
    output.residual_stride = stride_of(shape.channels) + 32;
    residual = laid_out(shape, samples, output.residual_stride);
    output.residual = residual.data();
  }
  if (to.options & BIAS) {
    bias = Memory<float>(to.bias);
    output.bias = bias.data();
  }
  if (to.options & (STEP_ROW | SAMPLE_ROW)) {
    const int64_t all = STEPS * shape.channels;
    const bool own = to.options & SAMPLE_ROW;
    const double* from = to.rows.values.data() + (own ? samples.first * all : 0);
    rows = Memory<float>(std::vector<double>(from, from + (own ? samples.count() : 1) * all));
    output.row = {rows.data(), own ? all : 0, shape.channels};
  }
  if (to.options & STATISTICS) {
    statistics = Memory<float>(samples.count() * ((shape.height + 3) / 4) * 2 * output.stride);
    output.statistics = statistics.data();
  }
}

Results OutputMemory::take() const {
  Results results = {{"map", taken(map, output.channels, output.stride)}};
  if (output.statistics != nullptr) {
    results.push_back({"statistics", taken(statistics, output.channels, output.stride)});
  }
  return results;
}

std::string shape_name(const Input& from, const Output& to) {
  const char* const names[] = {"norm",     "silu",     "bias",    "step-row",   "sample-row",
                               "residual", "in-place", "divisor", "statistics", "wide"};
  const Map& map = from.maps[0];
  std::string name = std::to_string(map.batch) + " x " + std::to_string(map.height) + "x" +
                     std::to_string(map.width) + "x" + std::to_string(map.channels);
  if (from.maps.size() == 2) name += "+" + std::to_string(from.maps[1].channels);
  name += " to " + std::to_string(to.residual.channels);
  for (int bit = 0; bit < 10; ++bit) {
    if ((from.options | to.options) & (1 << bit)) name += std::string(" ") + names[bit];
  }
  return name;
}
