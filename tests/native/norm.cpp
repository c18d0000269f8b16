// fastddpm_statistics and fastddpm_norm against GroupNorm's definition, written out.
#include <memory>

#include "check.h"
#include "formulas.h"

namespace {

struct Statistics {
  Map map;
  bool wide;

  Results run(Samples samples, int32_t threads) const {
    const int64_t stride = stride_of(map.channels) + (wide ? 16 : 0);
    const Memory<float> from = laid_out(map, samples, stride);
    const Memory<float> to(samples.count() * ((map.height + 3) / 4) * 2 * stride);
    const fastddpm_statistics arguments = {from.data(), stride,    map.channels, samples.count(),
                                           map.height,  map.width, to.data()};
    execute(FASTDDPM_OP_STATISTICS, &arguments, threads);
    return {{"statistics", taken(to, map.channels, stride)}};
  }
};

enum Options { NONE = 0, AFFINE = 1, STEP_FILM = 2, SAMPLE_FILM = 4 };

struct Shape {
  int64_t batch, height, width;
  std::vector<int64_t> channels;
  int64_t groups;
  int options;
};

const Shape SHAPES[] = {
    {3, 8, 8, {32}, 8, AFFINE},
    {2, 7, 7, {5}, 1, NONE},
    {2, 28, 28, {1}, 1, AFFINE},
    {2, 5, 9, {24, 12}, 4, AFFINE},
    {2, 6, 3, {3, 30}, 3, AFFINE | STEP_FILM},
    {4, 4, 4, {40, 56}, 32, AFFINE | SAMPLE_FILM},
    {3, 1, 1, {6}, 3, AFFINE},
    {2, 33, 2, {64}, 64, STEP_FILM},
    {1, 16, 16, {200, 184}, 32, AFFINE},
};

struct Norm {
  Shape shape;
  std::vector<Map> maps;
  std::vector<double> weight, bias;
  Map film;  // [1 or B, STEPS, 2, C]
  double eps = 1e-5;

  explicit Norm(const Shape& s) : shape(s), film(0, 0, 0, 0) {
    for (const int64_t count : s.channels) {
      maps.push_back(random_map(s.batch, s.height, s.width, count, 0.5));
    }
    weight = random_numbers(channels(), 1);
    bias = random_numbers(channels());
    film = random_map(s.options & SAMPLE_FILM ? s.batch : 1, STEPS, 2, channels());
  }

  int64_t channels() const { return maps[0].channels + (maps.size() == 2 ? maps[1].channels : 0); }

  Results reference() const {
    Map norm = group_norm(maps, shape.groups, eps);
    for (int64_t b = 0; b < shape.batch; ++b) {
      for (int64_t c = 0; c < channels(); ++c) {
        double &scale = norm.at(b, 1, 0, c), &shift = norm.at(b, 2, 0, c);
        if (shape.options & AFFINE) {
          scale *= weight[c];
          shift = bias[c];
        }
        if (shape.options & (STEP_FILM | SAMPLE_FILM)) {
          const int64_t row = shape.options & SAMPLE_FILM ? b : 0;
          const double a = film.at(row, STEP, 0, c);
          scale *= 1 + a;
          shift = shift * (1 + a) + film.at(row, STEP, 1, c);
        }
      }
    }
    return {{"norm", norm.values}};
  }

  Results run(Samples samples, int32_t threads) const {
    fastddpm_norm arguments = {};
    Memory<float> statistics[2];
    for (size_t k = 0; k < maps.size(); ++k) {
      arguments.channels[k] = maps[k].channels;
      arguments.stride[k] = stride_of(maps[k].channels) + 16 * static_cast<int64_t>(k);
      statistics[k] = laid_out(statistics_of(maps[k]), samples, arguments.stride[k]);
      arguments.statistics[k] = statistics[k].data();
    }
    arguments.batch = samples.count();
    arguments.height = shape.height;
    arguments.width = shape.width;
    arguments.groups = shape.groups;
    arguments.eps = eps;
    const Memory<float> scales(weight), shifts(bias);
    if (shape.options & AFFINE) {
      arguments.weight = scales.data();
      arguments.bias = shifts.data();
    }
    const int64_t all = STEPS * 2 * channels();
    const bool own = shape.options & SAMPLE_FILM;
    const double* from = film.values.data() + (own ? samples.first * all : 0);
    const Memory<float> rows(std::vector<double>(from, from + (own ? samples.count() : 1) * all));
    if (shape.options & (STEP_FILM | SAMPLE_FILM)) {
      arguments.modulation = {rows.data(), own ? all : 0, 2 * channels()};
    }
    const Memory<float> norm(samples.count() * 3 * stride_of(channels()));
    arguments.norm = norm.data();
    execute(FASTDDPM_OP_NORM, &arguments, threads);
    return {{"norm", taken(norm, channels(), stride_of(channels()))}};
  }
};

void add_statistics(Cases& cases, const Map& map, bool wide) {
  const auto problem = std::make_shared<const Statistics>(Statistics{map, wide});
  std::string name = "statistics " + std::to_string(map.height) + "x" + std::to_string(map.width) +
                     "x" + std::to_string(map.channels);
  cases.push_back({name, map.batch, FLOAT32,
                   [=] { return Results{{"statistics", statistics_of(problem->map).values}}; },
                   [=](Samples s, int32_t threads) { return problem->run(s, threads); }});
}

}  // namespace

void add_norm(Cases& cases) {
  add_statistics(cases, random_map(3, 8, 8, 16, 1), false);
  add_statistics(cases, random_map(2, 7, 7, 3, 1), false);
  add_statistics(cases, random_map(2, 28, 28, 1, 1), true);
  add_statistics(cases, random_map(2, 5, 9, 36, 1), true);
  add_statistics(cases, random_map(4, 1, 1, 5, 1), false);
  add_statistics(cases, random_map(1, 33, 31, 130, 1), false);
  // A mean far above the deviations: E[x^2] - E[x]^2 would lose them all.
  add_statistics(cases, random_map(2, 16, 16, 20, 1000), false);
  for (const Shape& shape : SHAPES) {
    const auto problem = std::make_shared<const Norm>(shape);
    std::string name = "norm " + std::to_string(shape.height) + "x" + std::to_string(shape.width) +
                       "x" + std::to_string(problem->channels()) + ", " +
                       std::to_string(shape.groups) + " groups";
    cases.push_back({name, shape.batch, FLOAT32, [=] { return problem->reference(); },
                     [=](Samples s, int32_t threads) { return problem->run(s, threads); }});
  }
}
