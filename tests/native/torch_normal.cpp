// fastddpm_torch_normal against Box-Muller in double on the standard library's Mersenne Twister.
#include <cmath>
#include <random>

#include "check.h"

namespace {

constexpr uint32_t SEED = 4357;
constexpr int64_t GROUP = 16;

fastddpm_mersenne seeded() {
  fastddpm_mersenne state = {};
  state.left = 1;
  uint32_t word = SEED;
  for (uint32_t k = 0; k < FASTDDPM_MERSENNE_WORDS; ++k) {
    if (k > 0) word = 1812433253u * (word ^ (word >> 30)) + k;
    state.words[k] = word;
  }
  return state;
}

std::vector<double> reference(int64_t count) {
  std::mt19937 words(SEED);
  std::vector<double> values;
  const auto draw = [&] { return static_cast<double>(words() & 0xFFFFFFu) * 0x1p-24; };
  for (int64_t k = 0; k < count; ++k) values.push_back(draw());
  const auto normals = [&](int64_t first) {
    for (int64_t k = first; k < first + GROUP / 2; ++k) {
      const double radius = std::sqrt(-2 * std::log(1 - values[k]));
      const double angle = 4 * std::acos(0.0) * values[k + GROUP / 2];
      values[k] = radius * std::cos(angle);
      values[k + GROUP / 2] = radius * std::sin(angle);
    }
  };
  for (int64_t first = 0; first + GROUP <= count; first += GROUP) normals(first);
  if (count % GROUP != 0) {
    for (int64_t k = count - GROUP; k < count; ++k) values[k] = draw();
    normals(count - GROUP);
  }
  return values;
}

// In two draws, of which the second begins where the first has left the state.
Results drawn(int64_t first, int64_t count) {
  fastddpm_mersenne state = seeded();
  const Memory<float> out(count, Alignment::ELEMENTS);
  if (fastddpm_torch_normal(out.data(), first, &state) == FASTDDPM_NO_SUCH_KERNEL) {
    // The baseline: there is nothing to compare.
    return {{"out", reference(count)}};
  }
  fastddpm_torch_normal(out.data() + first, count - first, &state);
  return {{"out", taken(out, 1, 1)}};
}

void add(Cases& cases, int64_t first, int64_t count) {
  cases.push_back({"torch_normal of " + std::to_string(count), 1, FLOAT32,
                   [=] { return Results{{"out", reference(count)}}; },
                   [=](Samples, int32_t) { return drawn(first, count); }});
}

}  // namespace

void add_torch_normal(Cases& cases) {
  // Groups of 16, so that two draws are as one; the last has a rest.
  add(cases, 16, 48);
  add(cases, 624, 2000);
  add(cases, 4096, 50001);
}
