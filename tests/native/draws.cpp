// fastddpm_normal and fastddpm_q_sample against the noise drawn one by one.
#include <memory>

#include "check.h"
#include "noise.h"

namespace {

constexpr uint64_t SEED = 0xFEDCBA9876543210;
constexpr uint32_t FORWARD = 2;

const std::vector<int64_t> INDICES = {3, (int64_t{5} << 32) + 1, 0, 77};
const std::vector<int64_t> TIMESTEPS = {0, 7, 123456, 999};
const int64_t BATCH = static_cast<int64_t>(INDICES.size());

// N numbers of each sample, with a step of their own or one that all share.
struct Draw {
  int64_t elements;
  bool own_steps;
  uint32_t purpose;

  std::vector<double> reference() const {
    std::vector<double> values;
    for (int64_t b = 0; b < BATCH; ++b) {
      const int64_t step = TIMESTEPS[own_steps ? b : 1];
      for (int64_t n = 0; n < elements; ++n) {
        values.push_back(normal_of(SEED, INDICES[b], step, purpose, n));
      }
    }
    return values;
  }

  Memory<int64_t> indices(Samples samples) const { return part(INDICES, samples); }
  Memory<int64_t> steps(Samples samples) const {
    return part(TIMESTEPS, own_steps ? samples : Samples{1, 2});
  }

  static Memory<int64_t> part(const std::vector<int64_t>& all, Samples samples) {
    return Memory<int64_t>(
        std::vector<int64_t>(all.begin() + samples.first, all.begin() + samples.last));
  }
};

void add_normal(Cases& cases, const Draw& draw) {
  const auto reference = [=] { return Results{{"out", draw.reference()}}; };
  const auto run = [=](Samples samples, int32_t threads) {
    const Memory<int64_t> indices = draw.indices(samples), steps = draw.steps(samples);
    const Memory<float> out(samples.count() * draw.elements, Alignment::ELEMENTS);
    fastddpm_normal(out.data(), indices.data(), samples.count(), draw.elements, SEED, steps.data(),
                    steps.count(), static_cast<int32_t>(draw.purpose), threads);
    return Results{{"out", taken(out, 1, 1)}};
  };
  cases.push_back({"normal of " + std::to_string(draw.elements), BATCH, FLOAT32, reference, run});
}

struct Forward {
  Draw draw;
  Map x_0;  // [B, 1, 1, N]
  std::vector<double> table = random_numbers(STEPS * FASTDDPM_FORWARD_COLUMNS);
  std::vector<int64_t> t = {3, 0, 2, 1};

  Results reference() const {
    const std::vector<double> noise = draw.reference();
    std::vector<double> x_t;
    for (int64_t k = 0; k < static_cast<int64_t>(noise.size()); ++k) {
      const double* row = &table[t[k / draw.elements] * FASTDDPM_FORWARD_COLUMNS];
      x_t.push_back(row[FASTDDPM_SIGNAL] * x_0.values[k] + row[FASTDDPM_SPREAD] * noise[k]);
    }
    return {{"x_t", x_t}, {"noise", noise}};
  }

  Results run(Samples samples, int32_t threads) const {
    const Memory<int64_t> indices = draw.indices(samples), steps = draw.steps(samples),
                          own_t = Draw::part(t, samples);
    const Memory<float> from(torch_order(x_0, samples)), rows(table);
    const Memory<float> x_t(from.count(), Alignment::ELEMENTS);
    const Memory<float> noise(from.count(), Alignment::ELEMENTS);
    fastddpm_q_sample(x_t.data(), noise.data(), from.data(), own_t.data(), rows.data(), STEPS,
                      indices.data(), samples.count(), draw.elements, SEED, steps.data(),
                      steps.count(), threads);
    return {{"x_t", taken(x_t, 1, 1)}, {"noise", taken(noise, 1, 1)}};
  }
};

void add_q_sample(Cases& cases, const Draw& draw) {
  const Map x_0 = random_map(BATCH, 1, 1, draw.elements);
  const auto problem = std::make_shared<const Forward>(Forward{draw, x_0});
  cases.push_back({"q_sample of " + std::to_string(draw.elements), BATCH, FLOAT32,
                   [=] { return problem->reference(); },
                   [=](Samples s, int32_t threads) { return problem->run(s, threads); }});
}

}  // namespace

void add_draws(Cases& cases) {
  add_normal(cases, {1, true, 0});
  add_normal(cases, {3 * 7 * 7, true, 4});
  // As much as is worth three threads.
  add_normal(cases, {50001, false, 1});
  add_q_sample(cases, {1, true, FORWARD});
  add_q_sample(cases, {3 * 7 * 7, false, FORWARD});
  add_q_sample(cases, {50001, true, FORWARD});
}
