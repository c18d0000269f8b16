// The reverse step, as an instruction and as a function, against its formula.
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "check.h"
#include "noise.h"

namespace {

constexpr double NO_CLIP = std::numeric_limits<double>::infinity();
constexpr uint64_t SEED = 0x123456789ABCDEF0;
constexpr uint32_t REVERSE = 1;

const std::vector<int64_t> INDICES = {3, (int64_t{5} << 32) + 1, 0, 77};
const std::vector<int64_t> TIMESTEPS = {0, 7, 123456, 999};

enum Options { NONE = 0, GIVEN_NOISE = 1, X_0 = 2, FUNCTION = 4 };

struct Shape {
  int64_t batch, elements;
  int32_t prediction, variance;
  double clip;
  int options;
};

constexpr int32_t OTHER = FASTDDPM_PREDICTION_OTHER, MEAN = FASTDDPM_PREDICTION_PREVIOUS_SAMPLE,
                  SHARE = FASTDDPM_PREDICTION_EPSILON_IN_X;
constexpr int32_t FIXED = FASTDDPM_VARIANCE_FIXED, LEARNED = FASTDDPM_VARIANCE_LEARNED,
                  RANGE = FASTDDPM_VARIANCE_LEARNED_RANGE;

const Shape SHAPES[] = {
    {3, 3 * 8 * 8, OTHER, FIXED, 1, X_0},
    {2, 49, OTHER, FIXED, 1, GIVEN_NOISE},
    {2, 1, OTHER, FIXED, NO_CLIP, X_0},
    {2, 135, OTHER, LEARNED, 1, X_0},
    {3, 67, OTHER, RANGE, 1, GIVEN_NOISE | X_0},
    {4, 3 * 5 * 9, MEAN, FIXED, 1, NONE},
    {2, 1000, MEAN, RANGE, NO_CLIP, X_0},
    {2, 3 * 7 * 7, SHARE, RANGE, 1, X_0},
    {2, 3 * 8 * 8, SHARE, FIXED, 1, FUNCTION | GIVEN_NOISE | X_0},
    {3, 67, OTHER, RANGE, 1, FUNCTION | X_0},
    {2, 49, MEAN, LEARNED, 1, FUNCTION | GIVEN_NOISE},
    // As much as is worth three threads.
    {3, 70001, OTHER, FIXED, 1, FUNCTION | X_0},
};

struct Step {
  Shape shape;
  std::vector<double> table;  // [STEPS, FASTDDPM_STEP_COLUMNS]
  Map x, output, noise;       // [B, 1, 1, N], the output [B, 1 or 2, 1, N]

  explicit Step(const Shape& s)
      : shape(s),
        table(random_numbers(STEPS * FASTDDPM_STEP_COLUMNS)),
        x(random_map(s.batch, 1, 1, s.elements)),
        output(random_map(s.batch, s.variance == FIXED ? 1 : 2, 1, s.elements)),
        noise(random_map(s.batch, 1, 1, s.elements)) {
    for (int64_t step = 0; step < STEPS; ++step) {
      double* row = &table[step * FASTDDPM_STEP_COLUMNS];
      row[FASTDDPM_LOG_VARIANCE_MIN] = -3;
      row[FASTDDPM_LOG_VARIANCE_MAX] = -1;
      row[FASTDDPM_NOISE_GATE] = 1;
    }
  }

  double sigma(const double* row, double v) const {
    if (shape.variance == FIXED) return row[FASTDDPM_SIGMA];
    const double fraction = (v + 1) / 2;
    const double between =
        fraction * row[FASTDDPM_LOG_VARIANCE_MAX] + (1 - fraction) * row[FASTDDPM_LOG_VARIANCE_MIN];
    return row[FASTDDPM_NOISE_GATE] * std::exp((shape.variance == LEARNED ? v : between) / 2);
  }

  Results reference() const {
    const double* row = &table[STEP * FASTDDPM_STEP_COLUMNS];
    std::vector<double> x_prev, x_0;
    for (int64_t b = 0; b < shape.batch; ++b) {
      for (int64_t n = 0; n < shape.elements; ++n) {
        const double x_t = x.at(b, 0, 0, n), out = output.at(b, 0, 0, n);
        const double factor = shape.prediction == SHARE ? row[FASTDDPM_X0_FROM_X] : 1;
        const double guess =
            row[FASTDDPM_X0_FROM_X] * x_t + factor * row[FASTDDPM_X0_FROM_OUTPUT] * out;
        x_0.push_back(std::clamp(guess, -shape.clip, shape.clip));
        const double mean = shape.prediction == MEAN ? row[FASTDDPM_MEAN_FROM_OUTPUT] * out
                                                     : row[FASTDDPM_MEAN_FROM_X0] * x_0.back() +
                                                           row[FASTDDPM_MEAN_FROM_X] * x_t;
        const double z = shape.options & GIVEN_NOISE
                             ? noise.at(b, 0, 0, n)
                             : normal_of(SEED, INDICES[b], TIMESTEPS[STEP], REVERSE, n);
        x_prev.push_back(mean + sigma(row, output.at(b, output.height - 1, 0, n)) * z);
      }
    }
    Results results = {{"x_prev", x_prev}};
    if (shape.options & X_0) results.push_back({"x_0", x_0});
    return results;
  }

  static Memory<float> part(const Map& map, Samples samples) {
    const int64_t each = map.height * map.channels;
    const auto begin = map.values.begin();
    return Memory<float>(
        std::vector<double>(begin + samples.first * each, begin + samples.last * each));
  }

  Results run(Samples samples, int32_t threads) const {
    const bool given = shape.options & GIVEN_NOISE;
    const Memory<float> x_t = part(x, samples), out = part(output, samples),
                        z = part(noise, samples), rows(table);
    const Memory<float> x_0(x_t.count(), Alignment::ELEMENTS);
    const Memory<int64_t> timesteps(TIMESTEPS);
    const Memory<int64_t> indices(
        std::vector<int64_t>(INDICES.begin() + samples.first, INDICES.begin() + samples.last));
    float* const to = shape.options & X_0 ? x_0.data() : nullptr;
    const float* const drawn = given ? z.data() : nullptr;
    if (shape.options & FUNCTION) {
      const int64_t row = STEP;
      fastddpm_ancestral_step(x_t.data(), to, x_t.data(), out.data(), drawn, rows.data(), STEPS,
                              &row, samples.count(), shape.elements, shape.prediction,
                              shape.variance, static_cast<float>(shape.clip), SEED, indices.data(),
                              timesteps.data(), threads);
    } else {
      const uint64_t seed = SEED;
      const fastddpm_step arguments = {x_t.data(),
                                       to,
                                       out.data(),
                                       drawn,
                                       rows.data(),
                                       samples.count(),
                                       shape.elements,
                                       shape.prediction,
                                       shape.variance,
                                       shape.clip,
                                       &seed,
                                       indices.data(),
                                       timesteps.data(),
                                       nullptr};
      execute(FASTDDPM_OP_STEP, &arguments, threads);
    }
    Results results = {{"x_prev", taken(x_t, 1, 1)}};
    if (to != nullptr) results.push_back({"x_0", taken(x_0, 1, 1)});
    return results;
  }
};

// *first_nonfinite after a step whose output is finite or is not.
Results first_nonfinite(double output, int64_t before, int32_t threads) {
  constexpr int64_t ELEMENTS = 200;
  Memory<float> x(std::vector<double>(ELEMENTS, 0.5)), z(std::vector<double>(ELEMENTS, 0.5));
  Memory<float> out(std::vector<double>(ELEMENTS, 0.5));
  out.data()[ELEMENTS - 1] = static_cast<float>(output);
  const Memory<float> rows(std::vector<double>(STEPS * FASTDDPM_STEP_COLUMNS, 0.5));
  int64_t seen = before;
  fastddpm_step arguments = {};
  arguments.x = x.data();
  arguments.model_output = out.data();
  arguments.noise = z.data();
  arguments.table = rows.data();
  arguments.batch = 1;
  arguments.elements = ELEMENTS;
  arguments.clip = NO_CLIP;
  arguments.first_nonfinite = &seen;
  execute(FASTDDPM_OP_STEP, &arguments, threads);
  return {{"first_nonfinite", {static_cast<double>(seen)}}};
}

void add_first_nonfinite(Cases& cases, double output, int64_t before, int64_t after) {
  std::string name =
      "first_nonfinite " + std::to_string(before) + " with output " + std::to_string(output);
  cases.push_back(
      {name, 1, 0, [=] { return Results{{"first_nonfinite", {static_cast<double>(after)}}}; },
       [=](Samples, int32_t threads) { return first_nonfinite(output, before, threads); }});
}

}  // namespace

void add_step(Cases& cases) {
  for (const Shape& shape : SHAPES) {
    const auto problem = std::make_shared<const Step>(shape);
    std::string name = std::string(shape.options & FUNCTION ? "ancestral_step" : "step") + " of " +
                       std::to_string(shape.elements) + ", prediction " +
                       std::to_string(shape.prediction) + ", variance " +
                       std::to_string(shape.variance);
    cases.push_back({name, shape.batch, FLOAT32, [=] { return problem->reference(); },
                     [=](Samples s, int32_t threads) { return problem->run(s, threads); }});
  }
  const double nan = std::numeric_limits<double>::quiet_NaN();
  add_first_nonfinite(cases, 0.5, -1, -1);
  add_first_nonfinite(cases, nan, -1, STEP);
  add_first_nonfinite(cases, NO_CLIP, STEP - 1, STEP);
  add_first_nonfinite(cases, nan, STEP + 1, STEP + 1);
}
