#include "array.h"

#include <random>

std::vector<double> random_numbers(int64_t count, double mean, double deviation) {
  static std::mt19937 generator(1);
  std::normal_distribution<double> normal(mean, deviation);
  std::vector<double> values(count);
  for (double& value : values) value = static_cast<float>(normal(generator));
  return values;
}

Map random_map(int64_t batch, int64_t height, int64_t width, int64_t channels, double mean,
               double deviation) {
  Map map(batch, height, width, channels);
  map.values = random_numbers(map.values.size(), mean, deviation);
  return map;
}

Memory<float> laid_out(const Map& map, Samples samples, int64_t stride) {
  const int64_t pixels = map.height * map.width;
  Memory<float> memory(samples.count() * pixels * stride);
  const double* from = map.values.data() + samples.first * pixels * map.channels;
  for (int64_t p = 0; p < samples.count() * pixels; ++p) {
    for (int64_t c = 0; c < map.channels; ++c) {
      memory.data()[p * stride + c] = static_cast<float>(from[p * map.channels + c]);
    }
  }
  return memory;
}

std::vector<double> taken(const Memory<float>& memory, int64_t channels, int64_t stride) {
  std::vector<double> values;
  for (int64_t p = 0; p < memory.count() / stride; ++p) {
    const float* from = memory.data() + p * stride;
    values.insert(values.end(), from, from + channels);
  }
  return values;
}

std::vector<double> torch_order(const Map& map, Samples samples) {
  std::vector<double> values;
  for (int64_t b = samples.first; b < samples.last; ++b) {
    for (int64_t c = 0; c < map.channels; ++c) {
      for (int64_t y = 0; y < map.height; ++y) {
        for (int64_t x = 0; x < map.width; ++x) values.push_back(map.at(b, y, x, c));
      }
    }
  }
  return values;
}
