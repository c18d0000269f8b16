// fastddpm_pointwise and fastddpm_layout: maps written as they are read.
#include <limits>
#include <memory>

#include "check.h"
#include "formulas.h"

namespace {

struct Shape {
  int64_t batch, height, width;  // of the input
  std::vector<int64_t> channels;
  int64_t resample;
  int options;
};

const Shape SHAPES[] = {
    {3, 8, 8, {16}, FASTDDPM_RESAMPLE_NONE, NORM | SILU},
    {2, 7, 7, {3}, FASTDDPM_RESAMPLE_NONE, NORM | RESIDUAL | DIVISOR | STATISTICS},
    {2, 28, 28, {1}, FASTDDPM_RESAMPLE_NONE, SILU | BIAS},
    {2, 5, 9, {24, 12}, FASTDDPM_RESAMPLE_NONE, NORM | SILU | STEP_ROW | STATISTICS},
    {2, 6, 4, {3, 29}, FASTDDPM_RESAMPLE_NONE, NORM | SAMPLE_ROW | IN_PLACE | WIDE},
    {5, 1, 1, {15, 17}, FASTDDPM_RESAMPLE_NONE, NORM | SILU},
    {3, 8, 8, {16}, FASTDDPM_RESAMPLE_HALVE, PLAIN},
    {2, 10, 14, {24, 12}, FASTDDPM_RESAMPLE_HALVE, NORM | SILU | STATISTICS},
    {2, 2, 6, {5}, FASTDDPM_RESAMPLE_HALVE, NORM | BIAS | RESIDUAL | WIDE},
    {3, 4, 4, {16}, FASTDDPM_RESAMPLE_DOUBLE, STATISTICS},
    {2, 7, 5, {24, 8}, FASTDDPM_RESAMPLE_DOUBLE, NORM | SILU | RESIDUAL | STATISTICS},
    {2, 1, 1, {33}, FASTDDPM_RESAMPLE_DOUBLE, NORM | BIAS | WIDE},
};

int64_t resampled(int64_t size, int64_t resample) {
  if (resample == FASTDDPM_RESAMPLE_HALVE) return size / 2;
  return resample == FASTDDPM_RESAMPLE_DOUBLE ? 2 * size : size;
}

struct Pointwise {
  Shape shape;
  Input input;
  Output output;

  explicit Pointwise(const Shape& s)
      : shape(s),
        input(s.batch, s.height, s.width, s.channels, s.options),
        output(s.batch, resampled(s.height, s.resample), resampled(s.width, s.resample),
               input.channels(), s.options) {}

  Results reference() const {
    const Map x = input.read();
    if (shape.resample == FASTDDPM_RESAMPLE_HALVE) return output.finish(halved(x));
    return output.finish(shape.resample == FASTDDPM_RESAMPLE_DOUBLE ? enlarged(x) : x);
  }

  Results run(Samples samples, int32_t threads) const {
    const InputMemory x(input, samples);
    const OutputMemory y(output, samples);
    const fastddpm_pointwise arguments = {
        x.input,       y.output, samples.count(), output.residual.height, output.residual.width,
        shape.resample};
    execute(FASTDDPM_OP_POINTWISE, &arguments, threads);
    return y.take();
  }
};

enum class Divisor { NONE, OF_STEP, OF_SAMPLE };

struct Layout {
  Map map;  // [B, 1, P, C]
  bool into_map;
  Divisor divisor;
  double factor = 2, offset = -1;

  // [STEPS, B]: of each sample, or the first for all.
  std::vector<double> divisors() const {
    std::vector<double> numbers;
    for (int64_t k = 0; k < STEPS * map.batch; ++k) numbers.push_back(0.5 + 0.75 * (k % 7));
    return numbers;
  }

  fastddpm_row divisor_row(const float* numbers, int64_t first) const {
    if (divisor == Divisor::NONE) return {nullptr, 0, 0};
    if (divisor == Divisor::OF_STEP) return {numbers, 0, map.batch};
    return {numbers + first, 1, map.batch};
  }

  Results reference() const {
    std::vector<double> values = into_map ? map.values : torch_order(map, {0, map.batch});
    const std::vector<double> numbers = divisors();
    const int64_t size = static_cast<int64_t>(values.size()) / map.batch;
    for (int64_t k = 0; k < static_cast<int64_t>(values.size()); ++k) {
      values[k] = values[k] * factor + offset;
      const int64_t sample = divisor == Divisor::OF_SAMPLE ? k / size : 0;
      if (divisor != Divisor::NONE) values[k] /= numbers[STEP * map.batch + sample];
    }
    return {{"to", values}};
  }

  Results run(Samples samples, int32_t threads) const {
    const int64_t stride = stride_of(map.channels);
    const Memory<float> plain(torch_order(map, samples)), numbers(divisors());
    const Memory<float> placed = laid_out(map, samples, stride);
    Memory<float> to(into_map ? placed.count() : plain.count(),
                     into_map ? Alignment::VECTORS : Alignment::ELEMENTS);
    const fastddpm_layout arguments = {to.data(),    into_map ? plain.data() : placed.data(),
                                       stride,       samples.count(),
                                       map.channels, map.width,
                                       into_map,     factor,
                                       offset,       divisor_row(numbers.data(), samples.first)};
    execute(FASTDDPM_OP_LAYOUT, &arguments, threads);
    if (into_map) return {{"to", taken(to, map.channels, stride)}};
    return {{"to", taken(to, 1, 1)}};
  }
};

void add_layout(Cases& cases, const Map& map, bool into_map, Divisor divisor) {
  const auto problem = std::make_shared<const Layout>(Layout{map, into_map, divisor});
  std::string name = std::string("layout ") + (into_map ? "into" : "out of") + " a map, " +
                     std::to_string(map.width) + " pixels of " + std::to_string(map.channels);
  cases.push_back({name, map.batch, FLOAT32, [=] { return problem->reference(); },
                   [=](Samples s, int32_t threads) { return problem->run(s, threads); }});
}

}  // namespace

void add_pointwise(Cases& cases) {
  const char* const names[] = {"pointwise ", "pointwise halved ", "pointwise doubled "};
  for (const Shape& shape : SHAPES) {
    const auto problem = std::make_shared<const Pointwise>(shape);
    cases.push_back({names[shape.resample] + shape_name(problem->input, problem->output),
                     shape.batch, FLOAT32, [=] { return problem->reference(); },
                     [=](Samples s, int32_t threads) { return problem->run(s, threads); }});
  }
  for (const bool into_map : {true, false}) {
    add_layout(cases, random_map(3, 1, 64, 3), into_map, Divisor::NONE);
    add_layout(cases, random_map(2, 1, 49, 1), into_map, Divisor::OF_STEP);
    add_layout(cases, random_map(2, 1, 45, 20), into_map, Divisor::OF_SAMPLE);
    add_layout(cases, random_map(5, 1, 1, 33), into_map, Divisor::OF_SAMPLE);
    add_layout(cases, random_map(1, 1, 784, 6), into_map, Divisor::OF_STEP);
  }
}
